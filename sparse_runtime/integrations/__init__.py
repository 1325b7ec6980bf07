"""Other libraries' doors to packed models; each is a module that imports its library."""
