// Integer kernels for x86 processors with AVX2. All tensors are dense, channels last.
#pragma once
#include <stdint.h>

#ifdef _OPENMP
#include <omp.h>
static inline int64_t tdq_thread(void) { return omp_get_thread_num(); }
static inline int64_t tdq_threads(void) { return omp_get_num_threads(); }
#else
static inline int64_t tdq_thread(void) { return 0; }
static inline int64_t tdq_threads(void) { return 1; }
#endif

// Threads worth waking for so many numbers.
static inline int tdq_team(int64_t threads, int64_t numbers) { return numbers < 1 << 15 ? 1 : (int)threads; }

// What becomes of `rows` rows of `channels` numbers: codes q + base in rows of `row`, zeros at their ends.
typedef struct {
    const float *scale;  // [scales], each for rows / scales rows
    int64_t scales, rows, channels, row, wide, threads;
    float low, high, offset;
    int32_t base;
} tdq_codes;

void tdq_quantize(const float *x, void *codes, const tdq_codes *d);
void tdq_round(const float *x, float *y, const tdq_codes *d);
void tdq_row_codes(const float *x, void *codes, int64_t channels, float step, const tdq_codes *d);

// Group normalization of [batch, rows, channels], SiLU behind it or not; to float, or to codes.
typedef struct {
    const float *x, *weight, *bias;  // weight and bias [channels] or null
    int64_t batch, rows, channels, groups, silu, threads;
    double eps;
} tdq_norm;

void tdq_normalize(const tdq_norm *d, const tdq_codes *codes, void *out);

// A convolution (or, with a kernel of 1 x 1, a matrix product) of codes. `depth` and `outputs` are those of one
// group; `depth` is padded to whole quads (narrow) or pairs (wide), `outputs` in tables to whole panels of 16.
typedef struct {
    const void *codes;          // [batch, in_h, in_w, row] u8, or s16 if wide
    const void *zeros;          // [depth] codes of real zero, for the padding
    const void *weight;         // [groups, panels, taps, depth / 4, 16, 4] s8, or [..., depth / 2, 16, 2] s16
    const int32_t *shift;       // [groups, padded outputs] z sum_k c
    const float *weight_scale;  // [groups, padded outputs]
    const float *bias;          // [groups, padded outputs]
    const float *scale;         // [scales]
    float *out;                 // [batch, out_h, out_w, groups * outputs]
    int64_t wide, run, scales, threads;
    int64_t batch, in_h, in_w, row, out_h, out_w, groups, depth, outputs;
    int64_t kernel_h, kernel_w, stride_h, stride_w, pad_h, pad_w, dilation_h, dilation_w;
} tdq_product;

void tdq_multiply(const tdq_product *d);
