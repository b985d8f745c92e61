/* What stands around integer layers, each in one pass: inputs to integers, gated GELU, group norm with SiLU, attention.
 *
 * native.py compiles this file for the CPU it runs on. Numbers are bfloat16 as their upper sixteen bits.
 */
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef uint16_t bf16;

static inline float widen(bf16 x) {
    uint32_t bits = (uint32_t)x << 16;
    float y;
    memcpy(&y, &bits, 4);
    return y;
}

static inline bf16 narrow(float x) { /* half to even, as torch rounds */
    uint32_t bits;
    memcpy(&bits, &x, 4);
    return (bf16)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
}

/* q = clamp(round(x / delta) + zero, 0, top), `inverse` being 1 / delta. */
#define QUANTISE_ROW(name, type, load)                                                             \
    static void name(const type *x, uint8_t *q, long n, float inverse, float zero, float top) {    \
        for (long i = 0; i < n; i++) {                                                             \
            float value = rintf(load(x[i]) * inverse) + zero;                                      \
            value = value > 0 ? value : 0;                                                         \
            q[i] = (uint8_t)(int)(value < top ? value : top);                                      \
        }                                                                                          \
    }
#define SAME(x) (x)
#if defined(__AVX512BW__) && defined(__AVX512DQ__) && defined(__AVX512VL__)
#define SIXTEEN_AT_ONCE
#include <immintrin.h>

static inline __mmask16 first_of_sixteen(long count) { return count >= 16 ? 0xffff : count > 0 ? (1 << count) - 1 : 0; }

static inline __m512 load_half(const bf16 *x, __mmask16 some) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(some, x)), 16));
}

/* Clamped before they become integers: what is too large for those wraps. */
static inline void quantise_sixteen(__m512 x, uint8_t *q, __mmask16 some, __m512 inverse, __m512 low, __m512 high, __m512i zero) {
    x = _mm512_min_ps(_mm512_max_ps(_mm512_mul_ps(x, inverse), low), high);
    _mm512_mask_cvtepi32_storeu_epi8(q, some, _mm512_add_epi32(_mm512_cvtps_epi32(x), zero));
}
#define QUANTISE_ROW_512(name, type, load)                                                         \
    static void name(const type *x, uint8_t *q, long n, float inverse, float zero, float top) {    \
        __m512 times = _mm512_set1_ps(inverse), low = _mm512_set1_ps(-zero), high = _mm512_set1_ps(top - zero); \
        __m512i add = _mm512_set1_epi32((int)zero);                                                \
        for (long i = 0; i + 16 <= n; i += 16)                                                     \
            quantise_sixteen(load(x + i, 0xffff), q + i, 0xffff, times, low, high, add);           \
        long whole = n / 16 * 16;                                                                  \
        if (whole < n)                                                                             \
            quantise_sixteen(load(x + whole, first_of_sixteen(n - whole)), q + whole, first_of_sixteen(n - whole), times, low, high, add); \
    }
#define LOAD_SINGLE(x, some) _mm512_maskz_loadu_ps(some, x)
QUANTISE_ROW_512(quantise_half, bf16, load_half)
QUANTISE_ROW_512(quantise_single, float, LOAD_SINGLE)
#else
QUANTISE_ROW(quantise_half, bf16, widen)
QUANTISE_ROW(quantise_single, float, SAME)
#endif

/* `height` rows of `runs` times n numbers an image, each run `step` after the one before. The integers get a frame of zero
 * points: `above` and below so many rows, `beside` so many numbers. */
void quantise(const void *x, int half, uint8_t *q, long images, long height, long runs, long n, long step, long above,
              long beside, float inverse, int zero, int top, int threads) {
    long row = runs * n + 2 * beside, rows = height + 2 * above;
#pragma omp parallel for collapse(2) num_threads(threads)
    for (long image = 0; image < images; image++)
        for (long y = 0; y < rows; y++) {
            uint8_t *out = q + (image * rows + y) * row;
            if (y < above || y >= height + above) {
                memset(out, zero, row);
                continue;
            }
            long at = (image * height + y - above) * runs * step;
            memset(out, zero, beside);
            out += beside;
            for (long run = 0; run < runs; run++, at += step, out += n)
                if (half)
                    quantise_half((const bf16 *)x + at, out, n, inverse, zero, top);
                else
                    quantise_single((const float *)x + at, out, n, inverse, zero, top);
            memset(out, zero, beside);
        }
}

/* 2^x for x <= 0 to four digits: the whole part into the exponent, the rest by a polynomial. */
static inline float power_of_two(float x) {
    x = x > -126 ? x : -126;
    float whole = floorf(x), rest = x - whole;
    float y = 0.99992522f + rest * (0.69583353f + rest * (0.22606718f + rest * 0.0780245f));
    int32_t exponent = (int32_t)whole * (1 << 23), bits;
    memcpy(&bits, &y, 4);
    bits += exponent;
    memcpy(&y, &bits, 4);
    return y;
}

/* x / 2 (1 + erf(x / sqrt 2)), erf by formula 7.1.26 of Abramowitz and Stegun. */
static inline float gelu(float x) {
    float a = fabsf(x) * 0.70710678f, t = 1 / (1 + 0.3275911f * a);
    float p = t * (0.254829592f + t * (-0.284496736f + t * (1.421413741f + t * (-1.453152027f + t * 1.061405429f))));
    float erf = 1 - p * power_of_two(-1.44269504f * a * a);
    return 0.5f * x * (1 + copysignf(erf, x));
}

#ifdef SIXTEEN_AT_ONCE
/* 2^x for x <= 0, as above. */
static inline __m512 powers_of_two(__m512 x) {
    __m512 rest = _mm512_reduce_ps(x, 0x09); /* less its whole part, rounded down */
    __m512 y = _mm512_fmadd_ps(rest, _mm512_set1_ps(0.0780245f), _mm512_set1_ps(0.22606718f));
    y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.69583353f));
    y = _mm512_fmadd_ps(rest, y, _mm512_set1_ps(0.99992522f));
    return _mm512_scalef_ps(y, x);
}

static inline __m512 gelu_sixteen(__m512 x) {
    const __m512 one = _mm512_set1_ps(1), two = _mm512_set1_ps(2), sign = _mm512_set1_ps(-0.0f);
    __m512 a = _mm512_mul_ps(_mm512_abs_ps(x), _mm512_set1_ps(0.70710678f));
    __m512 d = _mm512_fmadd_ps(a, _mm512_set1_ps(0.3275911f), one), t = _mm512_rcp14_ps(d);
    t = _mm512_mul_ps(t, _mm512_fnmadd_ps(d, t, two));
    __m512 p = _mm512_fmadd_ps(t, _mm512_set1_ps(1.061405429f), _mm512_set1_ps(-1.453152027f));
    p = _mm512_fmadd_ps(t, p, _mm512_set1_ps(1.421413741f));
    p = _mm512_fmadd_ps(t, p, _mm512_set1_ps(-0.284496736f));
    p = _mm512_mul_ps(t, _mm512_fmadd_ps(t, p, _mm512_set1_ps(0.254829592f)));
    __m512 e = powers_of_two(_mm512_mul_ps(_mm512_mul_ps(a, a), _mm512_set1_ps(-1.44269504f)));
    __m512 erf = _mm512_or_ps(_mm512_and_ps(x, sign), _mm512_fnmadd_ps(p, e, one));
    return _mm512_mul_ps(_mm512_mul_ps(x, _mm512_set1_ps(0.5f)), _mm512_add_ps(erf, one));
}

static inline void store_half(bf16 *x, __mmask16 some, __m512 value) { /* half to even */
    __m512i bits = _mm512_castps_si512(value), odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    bits = _mm512_srli_epi32(_mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff))), 16);
    _mm256_mask_storeu_epi16(x, some, _mm512_cvtepi32_epi16(bits));
}

static void gate(const bf16 *value, const bf16 *gate, bf16 *out, long n) {
    for (long i = 0; i < n; i += 16) {
        __mmask16 some = first_of_sixteen(n - i);
        store_half(out + i, some, _mm512_mul_ps(load_half(value + i, some), gelu_sixteen(load_half(gate + i, some))));
    }
}
#else
static void gate(const bf16 *value, const bf16 *gate, bf16 *out, long n) {
    for (long i = 0; i < n; i++)
        out[i] = narrow(widen(value[i]) * gelu(widen(gate[i])));
}
#endif

/* The first half of each row times the GELU of its second half. */
void gated_gelu(const bf16 *x, bf16 *y, long rows, long n, int threads) {
#pragma omp parallel for num_threads(threads)
    for (long row = 0; row < rows; row++)
        gate(x + row * 2 * n, x + row * 2 * n + n, y + row * n, n);
}

#ifdef SIXTEEN_AT_ONCE
/* Adds to each channel's sum and sum of squares those of `count` pixels, less what the first pixel holds there. */
static void add_moments(const bf16 *x, const bf16 *first, long count, long channels, float *sums, float *squares) {
    for (long c = 0; c < channels; c += 16) {
        __mmask16 some = first_of_sixteen(channels - c);
        __m512 from = load_half(first + c, some);
        __m512 sum = _mm512_maskz_loadu_ps(some, sums + c), square = _mm512_maskz_loadu_ps(some, squares + c);
        for (long p = 0; p < count; p++) {
            __m512 less = _mm512_sub_ps(load_half(x + p * channels + c, some), from);
            sum = _mm512_add_ps(sum, less);
            square = _mm512_fmadd_ps(less, less, square);
        }
        _mm512_mask_storeu_ps(sums + c, some, sum);
        _mm512_mask_storeu_ps(squares + c, some, square);
    }
}

/* What each channel is multiplied by, and what is added to it; they replace its moments. */
static void normalise(float *sums, float *squares, const bf16 *first, const bf16 *weight, const bf16 *bias, long pixels,
                      long channels, long groups, float epsilon) {
    long size = channels / groups;
    for (long g = 0; g < channels; g += size) {
        double mean = 0, variance = 0;
        for (long c = g; c < g + size; c++)
            mean += (widen(first[c]) + sums[c] / (double)pixels) / size;
        for (long c = g; c < g + size; c++) {
            double own = sums[c] / (double)pixels, apart = widen(first[c]) + own - mean;
            variance += (squares[c] / (double)pixels - own * own + apart * apart) / size;
        }
        double scale = 1 / sqrt((variance > 0 ? variance : 0) + epsilon);
        for (long c = g; c < g + size; c++)
            sums[c] = widen(weight[c]) * scale, squares[c] = widen(bias[c]) - mean * sums[c];
    }
}

static inline __m512 silu_sixteen(__m512 x) {
    __m512 e = powers_of_two(_mm512_mul_ps(x, _mm512_set1_ps(-1.44269504f)));
    return _mm512_div_ps(x, _mm512_add_ps(e, _mm512_set1_ps(1)));
}

#define PIXELS 8 /* that are read together */

/* Group norm of images [images, pixels, channels], and its SiLU if it is `activated`. */
void group_norm(const bf16 *x, const bf16 *weight, const bf16 *bias, bf16 *y, long images, long pixels, long channels,
                long groups, float epsilon, int activated, int threads) {
    long blocks = (pixels + PIXELS - 1) / PIXELS;
    float *moments = malloc(threads * 2 * channels * sizeof(float));
    for (long image = 0; image < images; image++, x += pixels * channels, y += pixels * channels) {
        memset(moments, 0, threads * 2 * channels * sizeof(float));
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long share = 0; share < threads; share++)
            for (long b = blocks * share / threads; b < blocks * (share + 1) / threads; b++) {
                long p = b * PIXELS, count = pixels - p < PIXELS ? pixels - p : PIXELS;
                float *sums = moments + share * 2 * channels;
                add_moments(x + p * channels, x, count, channels, sums, sums + channels);
            }
        for (long i = 2 * channels; i < threads * 2 * channels; i++)
            moments[i % (2 * channels)] += moments[i];
        float *times = moments, *plus = moments + channels;
        normalise(times, plus, x, weight, bias, pixels, channels, groups, epsilon);
#pragma omp parallel for num_threads(threads) schedule(static)
        for (long p = 0; p < pixels; p++)
            for (long c = 0; c < channels; c += 16) {
                __mmask16 some = first_of_sixteen(channels - c);
                __m512 value = _mm512_fmadd_ps(load_half(x + p * channels + c, some), _mm512_maskz_loadu_ps(some, times + c),
                                               _mm512_maskz_loadu_ps(some, plus + c));
                store_half(y + p * channels + c, some, activated ? silu_sixteen(value) : value);
            }
    }
    free(moments);
}
#endif

#ifndef __AVX512BF16__
int has_attention(void) { return 0; }
#else
/* Attention in blocks of QUERIES queries and KEYS keys, scores transposed: a vector register holds sixteen queries, so
 * maxima and sums need no steps across a register, and weights lie as the second product wants them. */
#define QUERIES 32
#define SPAN 64   /* keys whose scores stay in the first cache */
#define KEYS 256  /* keys whose values are summed at once */
#define SLACK 8.0f

#include "tiles.h"
#ifdef __AMX_BF16__
/* c [m, 32] (+)= a [m, k] b, m of sixteens and k of 32; b has k's in pairs, [k / 2, 32]. */
static void multiply_tiles(const bf16 *a, long lda, const uint32_t *b, float *c, long m, long k, int add) {
    for (long i = 0; i < m; i += 32) {
        int both = i + 16 < m;
        if (add) {
            _tile_loadd(0, c + i * 32, 128); _tile_loadd(1, c + i * 32 + 16, 128);
            if (both) {
                _tile_loadd(2, c + i * 32 + 512, 128); _tile_loadd(3, c + i * 32 + 528, 128);
            }
        } else {
            _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
        }
        for (long j = 0; j < k; j += 32) {
            _tile_loadd(6, b + j * 16, 128); _tile_loadd(7, b + j * 16 + 16, 128);
            _tile_loadd(4, a + i * lda + j, lda * 2);
            _tile_dpbf16ps(0, 4, 6); _tile_dpbf16ps(1, 4, 7);
            if (both) {
                _tile_loadd(5, a + (i + 16) * lda + j, lda * 2);
                _tile_dpbf16ps(2, 5, 6); _tile_dpbf16ps(3, 5, 7);
            }
        }
        _tile_stored(0, c + i * 32, 128); _tile_stored(1, c + i * 32 + 16, 128);
        if (both) {
            _tile_stored(2, c + i * 32 + 512, 128); _tile_stored(3, c + i * 32 + 528, 128);
        }
    }
}
#else
static int tiles_allowed(void) { return 0; }
typedef int Tiles;
static void tiles_begin(Tiles *before) { (void)before; }
static void tiles_end(const Tiles *before) { (void)before; }
static void multiply_tiles(const bf16 *a, long lda, const uint32_t *b, float *c, long m, long k, int add) {
    (void)a, (void)lda, (void)b, (void)c, (void)m, (void)k, (void)add;
}
#endif

int has_attention(void) { return tiles_allowed() ? 2 : 1; }

/* The same without tiles, eight rows at a time. */
static void multiply_vectors(const bf16 *a, long lda, const uint32_t *b, float *c, long m, long k, int add) {
    for (long i = 0; i < m; i += 8) {
        __m512 sums[8][2];
        for (int r = 0; r < 8; r++)
            for (int h = 0; h < 2; h++)
                sums[r][h] = add ? _mm512_loadu_ps(c + (i + r) * 32 + h * 16) : _mm512_setzero_ps();
        for (long j = 0; j < k / 2; j++) {
            __m512bh left = (__m512bh)_mm512_loadu_si512(b + j * 32), right = (__m512bh)_mm512_loadu_si512(b + j * 32 + 16);
            for (int r = 0; r < 8; r++) {
                uint32_t pair;
                memcpy(&pair, a + (i + r) * lda + 2 * j, 4);
                __m512bh all = (__m512bh)_mm512_set1_epi32((int)pair);
                sums[r][0] = _mm512_dpbf16_ps(sums[r][0], left, all);
                sums[r][1] = _mm512_dpbf16_ps(sums[r][1], right, all);
            }
        }
        for (int r = 0; r < 8; r++)
            for (int h = 0; h < 2; h++)
                _mm512_storeu_ps(c + (i + r) * 32 + h * 16, sums[r][h]);
    }
}

static void multiply(const bf16 *a, long lda, const uint32_t *b, float *c, long m, long k, int add, int tiles) {
    if (tiles)
        multiply_tiles(a, lda, b, c, m, k, add);
    else
        multiply_vectors(a, lda, b, c, m, k, add);
}

/* Two rows of sixteen as one of pairs. */
static inline __m512i paired(__m512 low, __m512 high) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    __m512i first = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(low), half), 16);
    __m512i second = _mm512_add_epi32(_mm512_castps_si512(high), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, first, second);
}

typedef struct {
    __m512 top[2], sum[2];
} Softmax;

/* The scale of weights follows the greatest score only where that is SLACK powers of two above it: so it hardly ever has
 * to, and weights have the same precision at any scale. Returns whether it did, and then by how much sums shrink. */
static int follow(const float *scores, long count, Softmax *state, float scale, __m512 shrink[2]) {
    int rose = 0;
    for (int h = 0; h < 2; h++) {
        const float *s = scores + 16 * h;
        __m512 tops[4];
        for (int r = 0; r < 4; r++)
            tops[r] = _mm512_loadu_ps(s + 32 * r);
        for (long key = 4; key < count; key += 4)
            for (int r = 0; r < 4; r++)
                tops[r] = _mm512_max_ps(tops[r], _mm512_loadu_ps(s + 32 * (key + r)));
        __m512 top = _mm512_max_ps(_mm512_max_ps(tops[0], tops[1]), _mm512_max_ps(tops[2], tops[3]));
        top = _mm512_mul_ps(top, _mm512_set1_ps(scale));
        __mmask16 above = _mm512_cmp_ps_mask(top, _mm512_add_ps(state->top[h], _mm512_set1_ps(SLACK)), _CMP_GT_OQ);
        top = _mm512_mask_mov_ps(state->top[h], above, top);
        shrink[h] = powers_of_two(_mm512_sub_ps(state->top[h], top));
        state->top[h] = top;
        rose |= above;
    }
    return rose;
}

/* Scores [count, 32] to weights in pairs of keys. */
static void weigh(const float *scores, uint32_t *weights, long count, Softmax *state, float scale) {
    for (int h = 0; h < 2; h++) {
        const float *s = scores + 16 * h;
        __m512 factor = _mm512_set1_ps(scale), top = state->top[h], sums[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
        for (long key = 0; key < count; key += 2) {
            __m512 low = powers_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + 32 * key), factor, top));
            __m512 high = powers_of_two(_mm512_fmsub_ps(_mm512_loadu_ps(s + 32 * key + 32), factor, top));
            sums[0] = _mm512_add_ps(sums[0], low), sums[1] = _mm512_add_ps(sums[1], high);
            _mm512_storeu_si512(weights + 16 * key + 16 * h, paired(low, high));
        }
        state->sum[h] = _mm512_add_ps(state->sum[h], _mm512_add_ps(sums[0], sums[1]));
    }
}

static void scale_rows(float *rows, long count, const __m512 by[2]) {
    for (long i = 0; i < count; i++, rows += QUERIES)
        for (int h = 0; h < 2; h++)
            _mm512_storeu_ps(rows + 16 * h, _mm512_mul_ps(_mm512_loadu_ps(rows + 16 * h), by[h]));
}

static inline __m512i sixteen_rows(long row) {
    const __m512i numbers = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
    return _mm512_mullo_epi32(numbers, _mm512_set1_epi32((int)row));
}

/* Two numbers side by side in each of the first rows. */
static inline __m512i pairs_of(const bf16 *x, long row, long count) {
    return _mm512_mask_i32gather_epi32(_mm512_setzero_si512(), first_of_sixteen(count), sixteen_rows(row), x, 2);
}

static inline void put_pairs(bf16 *x, long row, long count, __m512i pairs) {
    _mm512_mask_i32scatter_epi32(x, first_of_sixteen(count), sixteen_rows(row), pairs, 2);
}

/* One head's keys as they are, padded to [tokens, wide], and its values turned, in blocks [deep, KEYS]. */
static void arrange(const bf16 *k, const bf16 *v, bf16 *keys, bf16 *values, long tokens, long padded, long row, long dim,
                    long wide, long deep) {
    memset(keys, 0, padded * wide * 2);
    memset(values, 0, padded * deep * 2);
    for (long t = 0; t < tokens; t++)
        memcpy(keys + t * wide, k + t * row, dim * 2);
    for (long t = 0; t < tokens; t += 32)
        for (long d = 0; d < dim; d += 2) {
            bf16 *column = values + t / KEYS * deep * KEYS + d * KEYS + t % KEYS;
            __m512i even = pairs_of(v + t * row + d, 2 * row, (tokens - t + 1) / 2);
            __m512i odd = pairs_of(v + (t + 1) * row + d, 2 * row, (tokens - t) / 2);
            _mm512_storeu_si512(column, _mm512_mask_blend_epi16(0xaaaaaaaa, even, _mm512_slli_epi32(odd, 16)));
            _mm512_storeu_si512(column + KEYS, _mm512_mask_blend_epi16(0xaaaaaaaa, _mm512_srli_epi32(even, 16), odd));
        }
}

typedef struct {
    _Alignas(64) uint32_t queries[128 * QUERIES];
    _Alignas(64) float scores[SPAN * QUERIES];
    _Alignas(64) uint32_t weights[KEYS / 2 * QUERIES];
    _Alignas(64) float sums[256 * QUERIES];
} Bench;

/* What the keys from `first` to `next` weigh times their values, which lie in one block. */
static void add_values(const bf16 *values, long first, long next, Bench *at, long deep, long summed, int tiles) {
    const bf16 *block = values + first / KEYS * KEYS * deep + first % KEYS;
    multiply(block, KEYS, at->weights, at->sums, deep, next - first, summed != 0, tiles);
}

/* QUERIES queries of one head over all its keys. */
static void attend(const bf16 *q, const bf16 *keys, const bf16 *values, bf16 *out, long count, long tokens, long row,
                   long dim, long wide, long deep, float scale, Bench *at, int tiles) {
    memset(at->queries, 0, wide / 2 * QUERIES * 4);
    for (long d = 0; d < dim; d += 2)
        for (long n = 0; n < QUERIES; n += 16)
            _mm512_storeu_si512(at->queries + d / 2 * QUERIES + n, pairs_of(q + n * row + d, row, count - n));
    Softmax state = {{_mm512_set1_ps(-1e30f), _mm512_set1_ps(-1e30f)}, {_mm512_setzero_ps(), _mm512_setzero_ps()}};
    long first = 0, summed = 0; /* keys from `first` on are weighed and not yet summed */
    for (long key = 0; key < tokens; key += SPAN) {
        __m512 shrink[2];
        long seen = tokens - key < SPAN ? tokens - key : SPAN, span = (seen + 31) / 32 * 32, next = key + span;
        multiply(keys + key * wide, wide, at->queries, at->scores, span, wide, 0, tiles);
        for (long i = seen * QUERIES; i < span * QUERIES; i++)
            at->scores[i] = -1e30f;
        if (follow(at->scores, span, &state, scale, shrink)) {
            if (key > first)
                add_values(values, first, key, at, deep, summed, tiles), summed = first = key;
            state.sum[0] = _mm512_mul_ps(state.sum[0], shrink[0]), state.sum[1] = _mm512_mul_ps(state.sum[1], shrink[1]);
            if (summed)
                scale_rows(at->sums, deep, shrink);
        }
        weigh(at->scores, at->weights + (key - first) / 2 * QUERIES, span, &state, scale);
        if (next % KEYS == 0 || next >= tokens)
            add_values(values, first, next, at, deep, summed, tiles), summed = first = next;
    }
    for (long n = 0; n < QUERIES; n += 16) {
        __m512 share = _mm512_div_ps(_mm512_set1_ps(1), state.sum[n / 16]);
        for (long d = 0; d < dim; d += 2) {
            const float *sum = at->sums + d * QUERIES + n;
            __m512 low = _mm512_mul_ps(_mm512_loadu_ps(sum), share);
            __m512 high = _mm512_mul_ps(_mm512_loadu_ps(sum + QUERIES), share);
            put_pairs(out + n * row + d, row, count - n, paired(low, high));
        }
    }
}

/* softmax(scale q k') v for q and out [batch, queries, heads, dim] and k, v [batch, tokens, heads, dim]. `scale` holds
 * log2 e; `room` has batch * heads * padded * (wide + deep) numbers: tokens in whole KEYS, dim in whole 32 and 16. */
void attention(const bf16 *q, const bf16 *k, const bf16 *v, bf16 *out, bf16 *room, long batch, long queries, long tokens,
               long heads, long dim, float scale, int tiles, int threads) {
    long padded = (tokens + KEYS - 1) / KEYS * KEYS, wide = (dim + 31) / 32 * 32, deep = (dim + 15) / 16 * 16;
    long row = heads * dim, size = padded * (wide + deep), blocks = (queries + QUERIES - 1) / QUERIES;
#pragma omp parallel num_threads(threads)
    {
#pragma omp for
        for (long i = 0; i < batch * heads; i++) {
            long at = i / heads * tokens * row + i % heads * dim;
            arrange(k + at, v + at, room + i * size, room + i * size + padded * wide, tokens, padded, row, dim, wide, deep);
        }
        Bench *bench = aligned_alloc(64, sizeof(Bench));
        Tiles before;
        if (tiles)
            tiles_begin(&before);
#pragma omp for
        for (long i = 0; i < batch * heads * blocks; i++) {
            long head = i / blocks, first = i % blocks * QUERIES;
            long at = (head / heads * queries + first) * row + head % heads * dim;
            long count = queries - first < QUERIES ? queries - first : QUERIES;
            attend(q + at, room + head * size, room + head * size + padded * wide, out + at, count, tokens, row,
                   dim, wide, deep, scale, bench, tiles);
        }
        if (tiles)
            tiles_end(&before);
        free(bench);
    }
}
#endif
