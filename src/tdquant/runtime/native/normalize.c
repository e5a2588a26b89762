// Group normalization, and what follows it, in two passes over the input: one for the moments, one that
// normalizes, applies SiLU and rounds to codes. Channels last; every thread takes a share of the rows.
//
//   v = (x - mean_g) / sqrt(var_g + eps) w_c + b_c,    y = v or v / (1 + e^-v),    q = clip(round(y / s))
#include "kernels.h"

#include <immintrin.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

// e^x within 2 units in the last place: x = n log 2 + r, |r| <= log 2 / 2, and a polynomial in r.
static inline __m256 exponential(__m256 x) {
    x = _mm256_min_ps(_mm256_max_ps(x, _mm256_set1_ps(-87.3f)), _mm256_set1_ps(88.0f));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(1.44269504f)), _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fnmadd_ps(n, _mm256_set1_ps(0.693359375f), x);
    r = _mm256_fnmadd_ps(n, _mm256_set1_ps(-2.12194440e-4f), r);
    __m256 p = _mm256_set1_ps(1.0f / 5040);
    const float terms[] = {1.0f / 720, 1.0f / 120, 1.0f / 24, 1.0f / 6, 0.5f, 1.0f, 1.0f};
    for (int i = 0; i < 7; i++) p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(terms[i]));
    __m256i power = _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

static void finish_row(const tdq_norm *d, const float *x, const float *a, const float *b, float *y) {
    const __m256 one = _mm256_set1_ps(1.0f);
    int64_t c = 0;
    for (; c + 8 <= d->channels; c += 8) {
        __m256 v = _mm256_fmadd_ps(_mm256_loadu_ps(x + c), _mm256_loadu_ps(a + c), _mm256_loadu_ps(b + c));
        if (d->silu)
            v = _mm256_div_ps(v, _mm256_add_ps(one, exponential(_mm256_sub_ps(_mm256_setzero_ps(), v))));
        _mm256_storeu_ps(y + c, v);
    }
    for (; c < d->channels; c++) {
        float v = fmaf(x[c], a[c], b[c]);
        y[c] = d->silu ? v / (1.0f + expf(-v)) : v;
    }
}

// Sums over rows of x - shift and of its square, in blocks that keep float32 exact enough.
static void moments(const float *x, int64_t rows, int64_t channels, const float *shift, float *part, double *sum) {
    memset(sum, 0, 2 * channels * sizeof(double));
    for (int64_t r = 0; r < rows;) {
        int64_t stop = r + 32 < rows ? r + 32 : rows;
        memset(part, 0, 2 * channels * sizeof(float));
        for (; r < stop; r++) {
            const float *row = x + r * channels;
            int64_t c = 0;
            for (; c + 8 <= channels; c += 8) {
                __m256 v = _mm256_sub_ps(_mm256_loadu_ps(row + c), _mm256_loadu_ps(shift + c));
                _mm256_storeu_ps(part + c, _mm256_add_ps(_mm256_loadu_ps(part + c), v));
                float *square = part + channels + c;
                _mm256_storeu_ps(square, _mm256_fmadd_ps(v, v, _mm256_loadu_ps(square)));
            }
            for (; c < channels; c++) {
                float v = row[c] - shift[c];
                part[c] += v;
                part[channels + c] += v * v;
            }
        }
        for (int64_t c = 0; c < 2 * channels; c++) sum[c] += part[c];
    }
}

// From sums over all rows to a and b of y = a x + b, channel by channel.
static void affine(const tdq_norm *d, const float *shift, const double *sum, float *a, float *b) {
    int64_t width = d->channels / d->groups;
    double rows = (double)d->rows;
    for (int64_t g = 0; g < d->groups; g++) {
        double mean = 0, square = 0;
        for (int64_t c = g * width; c < (g + 1) * width; c++) mean += (shift[c] + sum[c] / rows) / width;
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            double own = sum[c] / rows, off = shift[c] + own - mean;
            square += sum[d->channels + c] - rows * own * own + rows * off * off;
        }
        double variance = square / (rows * width);
        double scale = 1 / sqrt((variance > 0 ? variance : 0) + d->eps);
        for (int64_t c = g * width; c < (g + 1) * width; c++) {
            double w = d->weight ? d->weight[c] * scale : scale;
            a[c] = (float)w;
            b[c] = (float)((d->bias ? d->bias[c] : 0) - mean * w);
        }
    }
}

void tdq_normalize(const tdq_norm *d, const tdq_codes *codes, void *out) {
    int64_t n = d->channels, size = codes ? (codes->wide ? 2 : 1) : 0;
    int64_t per_scale = codes ? codes->rows / codes->scales : 1;
    double *sums = malloc(d->threads * 2 * n * sizeof(double));
#pragma omp parallel num_threads(tdq_team(d->threads, d->batch * d->rows * n))
    {
        int64_t thread = tdq_thread(), threads = tdq_threads();
        int64_t first = d->rows * thread / threads, stop = d->rows * (thread + 1) / threads;
        float *part = malloc(5 * n * sizeof(float)), *a = part + 2 * n, *b = a + n, *row = b + n;
        double *total = malloc(2 * n * sizeof(double));
        for (int64_t i = 0; i < d->batch; i++) {
            const float *x = d->x + i * d->rows * n;
            moments(x + first * n, stop - first, n, x, part, sums + thread * 2 * n);
#pragma omp barrier
            memset(total, 0, 2 * n * sizeof(double));
            for (int64_t t = 0; t < threads; t++)
                for (int64_t c = 0; c < 2 * n; c++) total[c] += sums[t * 2 * n + c];
            affine(d, x, total, a, b);
            for (int64_t r = first; r < stop; r++) {
                int64_t at = i * d->rows + r;
                if (!codes) {
                    finish_row(d, x + r * n, a, b, (float *)out + at * n);
                    continue;
                }
                finish_row(d, x + r * n, a, b, row);
                tdq_row_codes(row, (char *)out + at * codes->row * size, n, codes->scale[at / per_scale], codes);
            }
#pragma omp barrier
        }
        free(part);
        free(total);
    }
    free(sums);
}
