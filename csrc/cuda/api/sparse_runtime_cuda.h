/* The CUDA library: plain C, pointers to device memory, a stream; no torch, no Python.
 *
 * Nothing is allocated, synchronized or kept. Functions that enqueue work return 0 or a status;
 * what a pointer points to is not checked.
 */
#ifndef SPARSE_RUNTIME_CUDA_H
#define SPARSE_RUNTIME_CUDA_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define SR_ABI_VERSION 4

enum { SR_INT8 = 0, SR_BF16 = 1, SR_F16 = 2, SR_F32 = 3 };
/* SR_EXACT: any matrix as the sum of two of four and a rest that is two of four as well. */
enum { SR_DENSE = 0, SR_TWO_OF_FOUR = 1, SR_EXACT = 2 };
enum { SR_NONE = 0, SR_GELU = 1, SR_GELU_NEW = 2, SR_RELU = 3, SR_SILU = 4, SR_TANH = 5 };
enum { SR_FLOATS = 0, SR_STATIC = 1, SR_SYMMETRIC = 2, SR_FULL_RANGE = 3, SR_ASYMMETRIC = 4 };
/* The order that a kernel reads weights in. */
enum { SR_ORDER_MMA = 0, SR_ORDER_HOPPER = 1 };
enum { SR_OK = 0, SR_NO_SUCH_KERNEL = 1, SR_INVALID = 2, SR_CUDA_ERROR = 3 };

/* One linear layer: y = activation(outputs(x w + bias)) + residual, as floats and/or quantized
 * rows. The fields are those of Quantized, Epilogue and Target in kernels/linear/operands.py; a
 * null pointer leaves a step out. Strides count elements; rows of x begin at multiples of 16 bytes.
 */
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
  int32_t* ranges; /* [2][tokens], zeros before and after */
  int32_t tokens, out_features, in_features;
  int32_t split_k;
  void* partials;             /* split_k > 1: 4 bytes a sum, see sr_workspace */
  int32_t* tile_counters;     /* split_k > 1: one a tile, zeros before and after */
  const void* rest;           /* SR_EXACT: slabs of the rest's packed form (SR_TWO_OF_FOUR), those
                               * that are not all zeros */
  const int32_t* rest_places; /* SR_EXACT: [ceil(out / 16)][ceil(in / 64)], 4 * number of the slab
                               * in rest + mask of the 64-byte pieces of inputs that have values;
                               * mask 0: none */
} SrLinear;

/* A kernel of this library. */
typedef struct {
  const char* name; /* family.type.structure.outputs x tokens of a tile */
  int32_t type;     /* of weights and x: SR_INT8, SR_BF16 or SR_F16 */
  int32_t structure;
  int32_t tile_out, tile_tok;
} SrKernel;

int32_t sr_abi_version(void);
int32_t sr_kernel_count(void);
/* SR_INVALID where there is no such number. */
int32_t sr_kernel(int32_t number, SrKernel* out);

/* What a kernel asks beyond its SrKernel. */
typedef struct {
  int32_t order;      /* of its weights */
  int32_t capability; /* 80: 8.0 and later; 90: 9.0 alone (sm_90a) */
  /* in_features must be a multiple of split_k times this where split_k > 1; 1: any. */
  int32_t split_multiple;
  int32_t weight_alignment; /* bytes */
  int32_t threads;          /* of a block */
  int32_t shared_bytes;     /* of a block, asked for at launch */
} SrNeeds;
int32_t sr_kernel_needs(int32_t kernel, SrNeeds* out);

/* What a layer needs: bytes of partials, elements of tile_counters. */
int32_t sr_workspace(int32_t kernel, int32_t tokens, int32_t out_features, int32_t split_k,
                     int64_t* partial_bytes, int64_t* tile_counters);

/* Enqueues a layer on `stream` (a cudaStream_t) of the current device: one launch, and a second
 * that quantizes rows where the scheme needs their ranges. */
int32_t sr_linear(int32_t kernel, const SrLinear* layer, void* stream);
/* What went wrong in the last call of this thread that returned SR_CUDA_ERROR. */
const char* sr_last_error(void);

/* Bytes of a packed weight; 0 for a type or structure that no kernel has. */
int64_t sr_packed_bytes(int32_t type, int32_t structure, int32_t out_features, int32_t in_features);
/* values [out][in] of the type, contiguous, in main memory -> `packed`, likewise. SR_INVALID: a
 * group of four inputs has more than two values whose bits are not all 0. */
int32_t sr_pack_weight(int32_t type, int32_t structure, const void* values, int32_t out_features,
                       int32_t in_features, void* packed);
/* The inverse: every bit of every value. */
int32_t sr_unpack_weight(int32_t type, int32_t structure, const void* packed, int32_t out_features,
                         int32_t in_features, void* values);
/* The same three for an order; those above are of SR_ORDER_MMA. */
int64_t sr_packed_bytes_in(int32_t order, int32_t type, int32_t structure, int32_t out_features,
                           int32_t in_features);
int32_t sr_pack_weight_in(int32_t order, int32_t type, int32_t structure, const void* values,
                          int32_t out_features, int32_t in_features, void* packed);
int32_t sr_unpack_weight_in(int32_t order, int32_t type, int32_t structure, const void* packed,
                            int32_t out_features, int32_t in_features, void* values);
/* sr_pack_weight on the GPU, enqueued; *misfits (device memory, 0 before) counts lanes with a group
 * that does not fit. */
int32_t sr_pack_weight_device(int32_t type, int32_t structure, const void* values,
                              int32_t out_features, int32_t in_features, void* packed,
                              int32_t* misfits, void* stream);

#ifdef __cplusplus
}
#endif

#endif
