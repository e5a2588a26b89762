// Convolutions and products of integer codes on AVX2, exact: no path saturates.
//
//   y[m, n] = s w[n] (sum_k q[m, k] c[n, k] - e[n]) + b[n],    e[n] = z sum_k c[n, k]
//
// A convolution is a product whose rows are gathered: for each output position and kernel tap there is a
// pointer to one row of input codes, or to a row of zero points where the tap falls into the padding.
//
// Two kernels, chosen by the range of the codes:
//   narrow   u8 x s8. Pairs of products are summed in int16, and `run` such sums before they overflow into
//            int32: the fewer bits, the longer the run and the faster the product.
//   wide     s16 x s16, summed in int32.
#include "kernels.h"

#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 6, PANEL = 16, CHUNK = 96 };

#define INLINE static inline __attribute__((always_inline))

// The inner loops are written out in assembly: compilers move accumulators about and lose half of the speed.
// ymm0 .. ymm11 hold six rows by two vectors of eight channels, ymm12 and ymm13 the weights, ymm14 one row's codes.
#define ROW(p, even, odd, MULTIPLY, ADD)                   \
    "vpbroadcastd (" p ", %[at]), %%ymm14\n\t"             \
    MULTIPLY " %%ymm12, %%ymm14, %%ymm15\n\t"              \
    MULTIPLY " %%ymm13, %%ymm14, %%ymm14\n\t"              \
    ADD " %%ymm15, " even ", " even "\n\t"                 \
    ADD " %%ymm14, " odd ", " odd "\n\t"

#define SIX_ROWS(MULTIPLY, ADD)                            \
    "vmovdqu (%[w]), %%ymm12\n\t"                          \
    "vmovdqu 32(%[w]), %%ymm13\n\t"                        \
    ROW("%[p0]", "%%ymm0", "%%ymm1", MULTIPLY, ADD)        \
    ROW("%[p1]", "%%ymm2", "%%ymm3", MULTIPLY, ADD)        \
    ROW("%[p2]", "%%ymm4", "%%ymm5", MULTIPLY, ADD)        \
    ROW("%[p3]", "%%ymm6", "%%ymm7", MULTIPLY, ADD)        \
    ROW("%[p4]", "%%ymm8", "%%ymm9", MULTIPLY, ADD)        \
    ROW("%[p5]", "%%ymm10", "%%ymm11", MULTIPLY, ADD)      \
    "add $64, %[w]\n\t"                                    \
    "add $4, %[at]\n\t"

#define EACH(DO)                                                                              \
    DO("%%ymm0", "0") DO("%%ymm1", "32") DO("%%ymm2", "64") DO("%%ymm3", "96")                \
    DO("%%ymm4", "128") DO("%%ymm5", "160") DO("%%ymm6", "192") DO("%%ymm7", "224")           \
    DO("%%ymm8", "256") DO("%%ymm9", "288") DO("%%ymm10", "320") DO("%%ymm11", "352")

#define CLEAR(y, at) "vpxor " y ", " y ", " y "\n\t"
#define LOAD(y, at) "vmovdqu " at "(%[out]), " y "\n\t"
#define STORE(y, at) "vmovdqu " y ", " at "(%[out])\n\t"
#define FLUSH(y, at)                              \
    "vpmaddwd %%ymm15, " y ", " y "\n\t"          \
    "vpaddd " at "(%[out]), " y ", " y "\n\t"     \
    "vmovdqu " y ", " at "(%[out])\n\t"

#define OPERANDS                                                                                                    \
    [p0] "r"(a[0]), [p1] "r"(a[1]), [p2] "r"(a[2]), [p3] "r"(a[3]), [p4] "r"(a[4]), [p5] "r"(a[5]), [out] "r"(out)
#define CLOBBERED                                                                                              \
    "ymm0", "ymm1", "ymm2", "ymm3", "ymm4", "ymm5", "ymm6", "ymm7", "ymm8", "ymm9", "ymm10", "ymm11", "ymm12", \
        "ymm13", "ymm14", "ymm15", "cc", "memory"

// Adds the bytes [at, stop) of six rows, times the weights, to out: `stop - at` holds one run at most.
INLINE const char *narrow_run(const char *const *a, const char *w, int64_t at, int64_t stop, int32_t *out) {
    __asm__ volatile(
        EACH(CLEAR)
        "1:\n\t"
        SIX_ROWS("vpmaddubsw", "vpaddw")
        "cmp %[stop], %[at]\n\t"
        "jl 1b\n\t"
        "vpcmpeqw %%ymm15, %%ymm15, %%ymm15\n\t"  // ones: -1 shifted down to its lowest bit
        "vpsrlw $15, %%ymm15, %%ymm15\n\t"
        EACH(FLUSH)
        : [w] "+r"(w), [at] "+r"(at)
        : OPERANDS, [stop] "r"(stop)
        : CLOBBERED);
    return w;
}

// Adds the bytes [0, stop) of six rows of pairs, times the weights, to out.
INLINE const char *wide_tap(const char *const *a, const char *w, int64_t stop, int32_t *out) {
    int64_t at = 0;
    __asm__ volatile(
        EACH(LOAD)
        "1:\n\t"
        SIX_ROWS("vpmaddwd", "vpaddd")
        "cmp %[stop], %[at]\n\t"
        "jl 1b\n\t"
        EACH(STORE)
        : [w] "+r"(w), [at] "+r"(at)
        : OPERANDS, [stop] "r"(stop)
        : CLOBBERED);
    return w;
}

// ROWS gathered rows by one panel of PANEL output channels, as int32.
static void tile(const tdq_product *d, const char *const *rows, const char *w, int32_t *out) {
    memset(out, 0, ROWS * PANEL * sizeof(int32_t));
    for (int64_t tap = 0; tap < d->kernel_h * d->kernel_w; tap++, rows += ROWS) {
        if (d->wide) {
            w = wide_tap(rows, w, 2 * d->depth, out);
            continue;
        }
        for (int64_t at = 0; at < d->depth; at += 4 * d->run) {
            int64_t end = at + 4 * d->run;
            w = narrow_run(rows, w, at, end < d->depth ? end : d->depth, out);
        }
    }
}

// Pointers to the input rows of output positions first .. first + count - 1, [tile][tap][row in tile].
static void gather(const tdq_product *d, int64_t group, int64_t first, int64_t count, const char **rows) {
    int64_t taps = d->kernel_h * d->kernel_w, size = d->wide ? 2 : 1;
    const char *codes = d->codes, *zeros = d->zeros;
    int64_t shift = group * d->depth * size;
    // A last tile that is not full repeats its last row.
    for (int64_t i = 0; i < (count + ROWS - 1) / ROWS * ROWS; i++) {
        int64_t m = first + (i < count ? i : count - 1), x = m % d->out_w, y = m / d->out_w % d->out_h, b = m / d->out_w / d->out_h;
        const char **slot = rows + (i / ROWS) * taps * ROWS + i % ROWS;
        for (int64_t ky = 0; ky < d->kernel_h; ky++) {
            int64_t iy = y * d->stride_h - d->pad_h + ky * d->dilation_h;
            for (int64_t kx = 0; kx < d->kernel_w; kx++, slot += ROWS) {
                int64_t ix = x * d->stride_w - d->pad_w + kx * d->dilation_w;
                int inside = iy >= 0 && iy < d->in_h && ix >= 0 && ix < d->in_w;
                *slot = inside ? codes + ((b * d->in_h + iy) * d->in_w + ix) * d->row * size + shift : zeros;
            }
        }
    }
}

static void store(const tdq_product *d, int64_t group, int64_t panel, int64_t m, int rows, const int32_t *sums) {
    int64_t left = d->outputs - panel * PANEL, padded = (d->outputs + PANEL - 1) / PANEL * PANEL;
    int count = left < PANEL ? (int)left : PANEL;
    int64_t n = group * padded + panel * PANEL;
    int64_t per_scale = d->batch * d->out_h * d->out_w / d->scales;
    for (int r = 0; r < rows; r++) {
        float s = d->scale[(m + r) / per_scale];
        float *y = d->out + (m + r) * d->groups * d->outputs + group * d->outputs + panel * PANEL;
        float whole[PANEL];
        float *to = count == PANEL ? y : whole;
        for (int i = 0; i < PANEL; i += 8) {
            __m256i c = _mm256_sub_epi32(_mm256_loadu_si256((const __m256i *)(sums + PANEL * r + i)),
                                         _mm256_loadu_si256((const __m256i *)(d->shift + n + i)));
            __m256 f = _mm256_mul_ps(_mm256_cvtepi32_ps(c),
                                     _mm256_mul_ps(_mm256_set1_ps(s), _mm256_loadu_ps(d->weight_scale + n + i)));
            _mm256_storeu_ps(to + i, _mm256_add_ps(f, _mm256_loadu_ps(d->bias + n + i)));
        }
        if (to == whole) memcpy(y, whole, count * sizeof(float));
    }
}

void tdq_multiply(const tdq_product *d) {
    int64_t taps = d->kernel_h * d->kernel_w, m = d->batch * d->out_h * d->out_w;
    int64_t panels = (d->outputs + PANEL - 1) / PANEL, chunks = (m + CHUNK - 1) / CHUNK;
    int64_t items = d->groups * chunks * panels;
    int64_t panel_bytes = taps * d->depth * PANEL * (d->wide ? 2 : 1);
#pragma omp parallel num_threads(tdq_team(d->threads, m * d->groups * d->outputs * taps * d->depth / 16))
    {
        int64_t thread = tdq_thread(), threads = tdq_threads();
        int64_t item = items * thread / threads, stop = items * (thread + 1) / threads;
        const char **rows = malloc(CHUNK * taps * sizeof(char *));
        int64_t known = -1;
        for (; item < stop; item++) {
            int64_t panel = item % panels, chunk = item / panels % chunks, group = item / panels / chunks;
            int64_t first = chunk * CHUNK, count = m - first < CHUNK ? m - first : CHUNK;
            if (known != item / panels) {
                gather(d, group, first, count, rows);
                known = item / panels;
            }
            const char *w = (const char *)d->weight + (group * panels + panel) * panel_bytes;
            for (int64_t i = 0; i < count; i += ROWS) {
                int32_t sums[ROWS * PANEL];
                tile(d, rows + i * taps, w, sums);
                store(d, group, panel, first + i, count - i < ROWS ? (int)(count - i) : ROWS, sums);
            }
        }
        free(rows);
    }
}
