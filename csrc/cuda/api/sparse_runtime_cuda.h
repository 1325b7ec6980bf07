/* The CUDA library: plain C, pointers to device memory, a stream; no torch, no Python.
 *
 * Nothing is allocated, synchronized or kept. Functions that enqueue work return 0 or a status; what a
 * pointer points to is not checked.
 */
#ifndef SPARSE_RUNTIME_CUDA_H
#define SPARSE_RUNTIME_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SR_ABI_VERSION 1

enum { SR_INT8 = 0, SR_BF16 = 1, SR_F16 = 2, SR_F32 = 3 };
enum { SR_DENSE = 0, SR_TWO_OF_FOUR = 1 };
enum { SR_NONE = 0, SR_GELU = 1, SR_GELU_NEW = 2, SR_RELU = 3, SR_SILU = 4, SR_TANH = 5 };
enum { SR_FLOATS = 0, SR_STATIC = 1, SR_SYMMETRIC = 2, SR_FULL_RANGE = 3, SR_ASYMMETRIC = 4 };
enum { SR_OK = 0, SR_NO_SUCH_KERNEL = 1, SR_INVALID = 2, SR_CUDA_ERROR = 3 };

/* One linear layer: y = activation(outputs(x w + bias)) + residual, as floats and/or quantized rows.
 * The fields are those of Quantized, Epilogue and Target in kernels/linear/operands.py; a null pointer
 * leaves a step out. Strides count elements; rows of x begin at multiples of 16 bytes. */
typedef struct {
  const void* x; /* [tokens][x_stride], int8 or the weights' float type */
  int64_t x_stride;
  const float* x_scale; /* int8: [tokens], or [1] with x_scale_stride 0 */
  const int32_t* x_zero;
  int32_t x_scale_stride;
  const void* weight; /* as sr_pack_weight wrote it */
  const float* weight_scale;
  const int32_t* weight_sum;
  const float* bias;
  const float* out_scale;
  const int32_t* out_zero;
  const int32_t* out_low;
  const int32_t* out_high;
  const void* residual; /* of floats_type */
  int64_t residual_stride;
  int32_t activation;
  int32_t scheme;
  void* floats; /* needed unless scheme is SR_STATIC */
  int64_t floats_stride;
  int32_t floats_type; /* SR_F32, SR_BF16 or SR_F16 */
  int8_t* q;
  int64_t q_stride;
  float* scale; /* written; read where scheme is SR_STATIC */
  int32_t* zero;
  int32_t low, high;
  int32_t* ranges;   /* [2][tokens], zeros before and after */
  int32_t* counters; /* one a block of tokens, zeros before and after */
  int32_t tokens, out_features, in_features;
  int32_t split_k;
  void* partials;         /* split_k > 1: 4 bytes a sum, see sr_workspace */
  int32_t* tile_counters; /* split_k > 1: one a tile, zeros before and after */
} SrLinear;

#ifdef __cplusplus
}
#endif

#endif
