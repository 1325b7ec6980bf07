"""What each compression method keeps of a small encoder's accuracy: experiments, runner, view."""
