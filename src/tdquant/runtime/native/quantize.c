// Codes of activations in one pass: q = clip(round((x - o) / s), low, high), ties to even, as the frozen model rounds.
#include "kernels.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

static inline float one_code(float x, float s, float offset, float low, float high) {
    float v = (x - offset) / s;
    v = v > low ? v : low;
    return nearbyintf(v < high ? v : high);
}

// Eight codes. Clipping comes first: what is beyond int32 would not convert; the bounds are whole, so nothing changes.
static inline __m256i eight_codes(const float *x, __m256 s, __m256 offset, __m256 low, __m256 high) {
    __m256 v = _mm256_div_ps(_mm256_sub_ps(_mm256_loadu_ps(x), offset), s);
    return _mm256_cvtps_epi32(_mm256_min_ps(_mm256_max_ps(v, low), high));
}

void tdq_row_codes(const float *x, void *codes, int64_t channels, float step, const tdq_codes *d) {
    __m256 s = _mm256_set1_ps(step), offset = _mm256_set1_ps(d->offset), low = _mm256_set1_ps(d->low), high = _mm256_set1_ps(d->high);
    __m256i base = _mm256_set1_epi32(d->base), order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    int64_t c = 0;
    if (d->wide) {
        int16_t *q = codes;
        for (; c + 16 <= channels; c += 16) {
            __m256i a = eight_codes(x + c, s, offset, low, high), b = eight_codes(x + c + 8, s, offset, low, high);
            __m256i both = _mm256_packs_epi32(_mm256_add_epi32(a, base), _mm256_add_epi32(b, base));
            _mm256_storeu_si256((__m256i *)(q + c), _mm256_permute4x64_epi64(both, 0xd8));
        }
        for (; c < channels; c++) q[c] = (int16_t)((int)one_code(x[c], step, d->offset, d->low, d->high) + d->base);
        for (; c < d->row; c++) q[c] = 0;
        return;
    }
    uint8_t *q = codes;
    for (; c + 32 <= channels; c += 32) {
        __m256i v[4];
        for (int i = 0; i < 4; i++) v[i] = _mm256_add_epi32(eight_codes(x + c + 8 * i, s, offset, low, high), base);
        __m256i packed = _mm256_packus_epi16(_mm256_packs_epi32(v[0], v[1]), _mm256_packs_epi32(v[2], v[3]));
        _mm256_storeu_si256((__m256i *)(q + c), _mm256_permutevar8x32_epi32(packed, order));
    }
    for (; c < channels; c++) q[c] = (uint8_t)((int)one_code(x[c], step, d->offset, d->low, d->high) + d->base);
    for (; c < d->row; c++) q[c] = 0;
}

void tdq_quantize(const float *x, void *codes, const tdq_codes *d) {
    int64_t size = d->wide ? 2 : 1, per_scale = d->rows / d->scales;
#pragma omp parallel for num_threads(tdq_team(d->threads, d->rows * d->channels)) schedule(static)
    for (int64_t r = 0; r < d->rows; r++)
        tdq_row_codes(x + r * d->channels, (char *)codes + r * d->row * size, d->channels, d->scale[r / per_scale], d);
}

// x_hat = s q + o, for products that stay in float.
void tdq_round(const float *x, float *y, const tdq_codes *d) {
    int64_t per_scale = d->rows / d->scales;
#pragma omp parallel for num_threads(tdq_team(d->threads, d->rows * d->channels)) schedule(static)
    for (int64_t r = 0; r < d->rows; r++) {
        float step = d->scale[r / per_scale];
        __m256 s = _mm256_set1_ps(step), offset = _mm256_set1_ps(d->offset), low = _mm256_set1_ps(d->low), high = _mm256_set1_ps(d->high);
        const float *from = x + r * d->channels;
        float *to = y + r * d->channels;
        int64_t c = 0;
        for (; c + 8 <= d->channels; c += 8) {
            __m256 q = _mm256_cvtepi32_ps(eight_codes(from + c, s, offset, low, high));
            _mm256_storeu_ps(to + c, _mm256_add_ps(_mm256_mul_ps(q, s), offset));
        }
        for (; c < d->channels; c++) to[c] = one_code(from[c], step, d->offset, d->low, d->high) * step + d->offset;
    }
}
