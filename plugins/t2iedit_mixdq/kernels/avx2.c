/* Products of 8-bit integers on CPUs that have AVX2 and no VNNI, exact where AVX2's own multiply-and-add of bytes would
 * saturate: convolutions as one product of patches, which are gathered block by block and never lie in memory as a whole.
 *
 * native.py compiles this file for the CPU it runs on.
 */
#ifndef __AVX2__
int has_avx2(void) { return 0; }
#else
#include <immintrin.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define ROWS 6      /* of inputs, and */
#define OUTPUTS 16  /* that are multiplied at once, so that all sums stay in registers */
#define BLOCK 120   /* rows between which a panel of weights stays in the cache */

typedef __m256i Sums[ROWS][2];

int has_avx2(void) { return 1; }

/* Adds to the sums of a row what four of its bytes make of weights in `left` and `right`. In assembly, since compilers
 * fetch all rows' bytes first and run out of registers. */
#define ADD_PRODUCTS(multiply, add, bytes, sum)                                                    \
    {                                                                                              \
        __m256i all, some;                                                                         \
        __asm__("vpbroadcastd %[four], %[all]\n\t" multiply " %[l], %[all], %[some]\n\t" multiply  \
                " %[r], %[all], %[all]\n\t" add " %[some], %[s0], %[s0]\n\t" add " %[all], %[s1], %[s1]" \
                : [s0] "+x"(sum[0]), [s1] "+x"(sum[1]), [all] "=&x"(all), [some] "=&x"(some)       \
                : [four] "m"(*(const int32_t *)(bytes)), [l] "x"(left), [r] "x"(right));           \
    }
#define EACH_ROW(multiply, add, a, row)                                                            \
    ADD_PRODUCTS(multiply, add, a, s[0])                                                           \
    ADD_PRODUCTS(multiply, add, (a) + row, s[1])                                                   \
    ADD_PRODUCTS(multiply, add, (a) + 2 * row, s[2])                                               \
    ADD_PRODUCTS(multiply, add, (a) + 3 * row, s[3])                                               \
    ADD_PRODUCTS(multiply, add, (a) + 4 * row, s[4])                                               \
    ADD_PRODUCTS(multiply, add, (a) + 5 * row, s[5])

/* Bytes widened to sixteen bits, of which pairs of products are added in 32. A panel has inputs by twos. */
static void multiply_wide(const int16_t *a, long k, const int8_t *panel, Sums sums) {
    Sums s;
    for (int r = 0; r < ROWS; r++)
        s[r][0] = s[r][1] = _mm256_setzero_si256();
    for (const int16_t *end = a + k; a < end; a += 2, panel += 2 * OUTPUTS) {
        __m256i left = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)panel));
        __m256i right = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(panel + 16)));
        EACH_ROW("vpmaddwd", "vpaddd", a, k)
    }
    for (int r = 0; r < ROWS; r++)
        sums[r][0] = s[r][0], sums[r][1] = s[r][1];
}

/* `count` fours of bytes as they are; their sums fit sixteen bits. */
static void multiply_few(const uint8_t *a, long k, const int8_t *panel, long count, Sums sums) {
    Sums s;
    for (int r = 0; r < ROWS; r++)
        s[r][0] = s[r][1] = _mm256_setzero_si256();
    for (const uint8_t *end = a + 4 * count; a < end; a += 4, panel += 4 * OUTPUTS) {
        __m256i left = _mm256_loadu_si256((const __m256i *)panel);
        __m256i right = _mm256_loadu_si256((const __m256i *)(panel + 32));
        EACH_ROW("vpmaddubsw", "vpaddw", a, k)
    }
    const __m256i ones = _mm256_set1_epi16(1);
    for (int r = 0; r < ROWS; r++)
        for (int h = 0; h < 2; h++)
            sums[r][h] = _mm256_add_epi32(sums[r][h], _mm256_madd_epi16(s[r][h], ones));
}

/* For weights so small that `fitting` pairs of products fit sixteen bits. A panel has inputs by fours. */
static void multiply_narrow(const uint8_t *a, long k, const int8_t *panel, long fitting, Sums sums) {
    for (int r = 0; r < ROWS; r++)
        sums[r][0] = sums[r][1] = _mm256_setzero_si256();
    for (long i = 0; i < k; i += 4 * fitting) {
        long left = (k - i) / 4;
        multiply_few(a + i, k, panel + i * OUTPUTS, left < fitting ? left : fitting, sums);
    }
}

/* y = sum * scale + bias. */
static void put(const __m256i sums[2], const float *scale, const float *bias, void *y, long at, long count, int half) {
    float few[OUTPUTS], *out = half || count < OUTPUTS ? few : (float *)y + at;
    uint16_t upper[OUTPUTS];
    for (int h = 0; h < 2; h++) {
        __m256 sum = _mm256_cvtepi32_ps(sums[h]);
        _mm256_storeu_ps(out + 8 * h, _mm256_fmadd_ps(sum, _mm256_loadu_ps(scale + 8 * h), _mm256_loadu_ps(bias + 8 * h)));
    }
    if (!half) {
        if (out == few)
            memcpy((float *)y + at, out, count * 4);
        return;
    }
    for (int i = 0; i < OUTPUTS; i++) { /* half to even, as torch rounds */
        uint32_t bits;
        memcpy(&bits, out + i, 4);
        upper[i] = (uint16_t)((bits + 0x7fff + ((bits >> 16) & 1)) >> 16);
    }
    memcpy((uint16_t *)y + at, upper, count * 2);
}

/* Patches of the framed images q, [rows of a patch, columns, channels] each, times the weights: [images, high, wide, n].
 *
 * Weights lie in panels of OUTPUTS outputs, their inputs by fours if `fitting` pairs of products fit sixteen bits, by twos
 * if it is 0; inputs are filled up with zeros to `padded`, outputs, `scale` and `bias` to whole panels. */
void multiply_avx2(const uint8_t *q, const int8_t *weights, long fitting, const float *scale, const float *bias, void *y, int half,
              long images, long height, long width, long channels, long high, long wide, long rows, long columns, long down,
              long right, long padded, long n, int threads) {
    long run = columns * channels, total = images * high * wide, size = fitting ? 1 : 2;
    long block = (total + threads - 1) / threads;
    block = block < BLOCK ? (block + ROWS - 1) / ROWS * ROWS : BLOCK;
#pragma omp parallel num_threads(threads)
    {
        long bytes = (block * padded * size + 63) & ~63L;
        uint8_t *patches = aligned_alloc(64, bytes);
        memset(patches, 0, bytes);
#pragma omp for schedule(dynamic)
        for (long first = 0; first < total; first += block) {
            long count = total - first < block ? total - first : block;
            for (long r = 0; r < count; r++) {
                long x = (first + r) % wide, line = (first + r) / wide % high, image = (first + r) / wide / high;
                const uint8_t *from = q + ((image * height + line * down) * width + x * right) * channels;
                for (long row = 0; row < rows; row++, from += width * channels) {
                    if (fitting) {
                        memcpy(patches + r * padded + row * run, from, run);
                        continue;
                    }
                    int16_t *to = (int16_t *)patches + r * padded + row * run;
                    for (long i = 0; i < run; i++)
                        to[i] = from[i];
                }
            }
            for (long c = 0; c < n; c += OUTPUTS)
                for (long r = 0; r < count; r += ROWS) {
                    const uint8_t *a = patches + r * padded * size;
                    Sums sums;
                    if (fitting)
                        multiply_narrow(a, padded, weights + c * padded, fitting, sums);
                    else
                        multiply_wide((const int16_t *)a, padded, weights + c * padded, sums);
                    long left = n - c < OUTPUTS ? n - c : OUTPUTS;
                    for (long i = 0; i < ROWS && r + i < count; i++)
                        put(sums[i], scale + c, bias + c, y, (first + r + i) * n + c, left, half);
                }
        }
        free(patches);
    }
}
#endif
