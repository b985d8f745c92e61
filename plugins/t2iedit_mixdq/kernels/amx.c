/* Products of 8-bit integers on CPUs that have AMX. oneDNN's take longer: here a panel of weights and a block of
 * inputs stay in the second cache while they multiply, and an image is read where it lies.
 *
 * native.py compiles this file for the CPU it runs on.
 */
#include "tiles.h"
#if !defined(__AMX_INT8__) || !defined(__AVX512BF16__)
int has_tiles(void) { return 0; }
#else
#include <stdlib.h>
#include <string.h>

#define ROWS 32           /* of inputs, and */
#define OUTPUTS 32        /* that are multiplied at once: four tiles of sums */
#define STEP 64           /* inputs of a tile */
#define TILE (16 * STEP)  /* bytes */
#define LINE 64           /* of a cache, in bytes */
#define CACHED (1600 << 10) /* bytes that stay in the second cache, of them at most so many of */
#define INPUTS (1408 << 10) /* inputs, and of */
#define WEIGHTS (512 << 10) /* weights; the next ones are fetched meanwhile */

int has_tiles(void) { return tiles_allowed(); }

/* Where a group of ROWS patches lies: each row `stride` after the one before, step i of it `offsets[i]` further. */
typedef struct {
    const uint8_t *at;
    long stride;
    const long *offsets;
} Group;

/* Integers of 2 or 4 bits as packing.py packs them, `count` of them. */
static void unpack(const uint8_t *packed, long bits, long count, int8_t *out) {
    long length = count * bits / 8;
    const __m512i low = _mm512_set1_epi8((1 << bits) - 1), sign = _mm512_set1_epi8(1 << (bits - 1));
    for (long i = 0; i < length; i += 64) {
        __m512i bytes = _mm512_loadu_si512(packed + i);
        for (long s = 0; s < 8 / bits; s++, bytes = _mm512_srl_epi16(bytes, _mm_cvtsi32_si128(bits))) {
            __m512i some = _mm512_xor_si512(_mm512_and_si512(bytes, low), sign);
            _mm512_storeu_si512(out + s * length + i, _mm512_sub_epi8(some, sign));
        }
    }
}

/* How the patches of a layer lie, and how their steps are ordered. */
typedef struct {
    long height, width, channels, high, wide, rows, columns, down, right, padded, n;
    long steps, pitch, positions; /* `positions` patches an image, `pitch` of them a line */
    int in_place;
    const long *offsets, *places, *gathered, *straight;
    const uint8_t *end;
} Layer;

/* The most that is no more than `most` or than `all`, in whole `unit`s, and at least one. */
static long whole(long most, long unit, long all) {
    all = (all + unit - 1) / unit * unit, most = most / unit * unit;
    return most < unit ? unit : most < all ? most : all;
}

/* One patch, its channels side by side. */
static void gather(const Layer *of, const uint8_t *image, long x, long line, uint8_t *to) {
    const uint8_t *from = image + (line * of->down * of->width + x * of->right) * of->channels;
    for (long row = 0; row < of->rows; row++, from += of->width * of->channels, to += of->columns * of->channels)
        memcpy(to, from, of->columns * of->channels);
}

/* `some` patches from p on, those that begin in the frame left out. */
static void gather_group(const Layer *of, const uint8_t *image, long p, long some, uint8_t *to) {
    for (long r = 0; r < some; r++)
        if ((p + r) % of->pitch < of->wide)
            gather(of, image, (p + r) % of->pitch, (p + r) / of->pitch, to + r * of->padded);
}

/* Whether ROWS patches from `at` on may be read where they lie. */
static int lies_inside(const Layer *of, const uint8_t *at) {
    long reach = ((of->rows - 1) * of->width + of->columns) * of->channels;
    return of->in_place && at + (ROWS - 1) * of->channels + reach <= of->end;
}

/* Sums of OUTPUTS outputs that wait to be scaled and written: of `some` patches, the first at x of its line. */
typedef struct {
    const int32_t *sums;
    const float *scale, *bias;
    char *y;
    long some, x;
    __mmask32 outputs;
} Waiting;

static Waiting waiting(const Layer *of, const int32_t *sums, long image, long p, long some, const float *scale, const float *bias,
                       void *y, long c, int half) {
    long x = p % of->pitch, line = image * of->high + p / of->pitch, count = of->n - c;
    long at = (line * of->wide + (x < of->wide ? x : of->wide)) * of->n + c;
    __mmask32 outputs = count < OUTPUTS ? (1u << count) - 1 : ~0u;
    return (Waiting){sums, scale + c, bias + c, (char *)y + at * (half ? 2 : 4), some, x, outputs};
}

/* y = sum * scale + bias for the next patches that wait, `most` of them. */
static inline void put(const Layer *of, Waiting *w, long most, int half) {
    __mmask16 low = w->outputs, high = w->outputs >> 16;
    __m512 scale = _mm512_maskz_loadu_ps(low, w->scale), scales = _mm512_maskz_loadu_ps(high, w->scale + 16);
    __m512 bias = _mm512_maskz_loadu_ps(low, w->bias), biases = _mm512_maskz_loadu_ps(high, w->bias + 16);
    for (; most && w->some; most--, w->some--, w->sums += OUTPUTS) {
        if (w->x < of->wide) {
            __m512 left = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(w->sums)), scale, bias);
            __m512 right = _mm512_fmadd_ps(_mm512_cvtepi32_ps(_mm512_load_si512(w->sums + 16)), scales, biases);
            if (half)
                _mm512_mask_storeu_epi16(w->y, w->outputs, (__m512i)_mm512_cvtne2ps_pbh(right, left));
            else {
                _mm512_mask_storeu_ps(w->y, low, left);
                _mm512_mask_storeu_ps(w->y + 64, high, right);
            }
            w->y += of->n * (half ? 2 : 4);
        }
        w->x = w->x + 1 == of->pitch ? 0 : w->x + 1;
    }
}

/* Memory that is wanted next: from `at` to `end`, `rate` lines with each step. */
typedef struct {
    const char *at, *end;
    long rate;
} Ahead;

/* Weights of step i lie `places[i]` after the panel's beginning. They pass the first cache by, where inputs are read again.
 * Meanwhile the sums before are written, and the next weights fetched. */
static void multiply_group(const Layer *of, Group a, const int8_t *left, const int8_t *right, const long *places, int32_t *sums,
                           Waiting *before, Ahead *ahead, int half) {
    const uint8_t *lower = a.at + 16 * a.stride;
    long most = (ROWS + of->steps - 1) / of->steps;
    _tile_zero(0); _tile_zero(1); _tile_zero(2); _tile_zero(3);
    for (long i = 0; i < of->steps; i++) {
        _tile_stream_loadd(6, left + places[i], STEP);
        _tile_loadd(4, a.at + a.offsets[i], a.stride);
        _tile_stream_loadd(7, right + places[i], STEP);
        _tile_loadd(5, lower + a.offsets[i], a.stride);
        _tile_dpbusd(0, 4, 6);
        _tile_dpbusd(1, 4, 7);
        _tile_dpbusd(2, 5, 6);
        _tile_dpbusd(3, 5, 7);
        put(of, before, most, half);
        if (ahead->at < ahead->end)
            for (long line = 0; line < ahead->rate; line++, ahead->at += LINE)
                _mm_prefetch(ahead->at, _MM_HINT_T1);
    }
    _tile_stored(0, sums, OUTPUTS * 4); _tile_stored(1, sums + 16, OUTPUTS * 4);
    _tile_stored(2, sums + 16 * OUTPUTS, OUTPUTS * 4); _tile_stored(3, sums + 16 * OUTPUTS + 16, OUTPUTS * 4);
}

/* As multiply_avx2, weights in panels of 16 outputs, their inputs by fours and filled up to whole STEPs. Panels of 2 or 4
 * `bits` are packed each for itself, and unpacked into the second cache.
 *
 * An image whose patches are a step apart is read where it lies, line after line with its frame, so that any ROWS patches
 * in a row are equally far apart; what begins in the frame is computed in vain. Its steps go through the taps of 64 channels,
 * then through the next 64: so neighbouring taps find their inputs in the first cache. Other patches are gathered. */
void multiply_amx(const uint8_t *q, const int8_t *weights, long bits, const float *scale, const float *bias, void *y, int half,
                  long images, long height, long width, long channels, long high, long wide, long rows, long columns, long down,
                  long right, long padded, long n, int threads) {
    int in_place = channels % STEP == 0 && down == 1 && right == 1;
    long steps = padded / STEP, pitch = in_place ? width : wide, positions = high * pitch;
    long *offsets = malloc(4 * steps * sizeof(long)), *places = offsets + steps, *gathered = places + steps, *straight = gathered + steps;
    for (long i = 0; i < steps; i++) {
        long tap = i % (rows * columns), lot = i / (rows * columns);
        offsets[i] = (tap / columns * width + tap % columns) * channels + lot * STEP;
        places[i] = (tap * (channels / STEP) + lot) * TILE;
        gathered[i] = i * STEP, straight[i] = i * TILE;
    }
    const Layer of = {height, width, channels, high, wide, rows, columns, down, right, padded, n, steps, pitch, positions,
                      in_place, offsets, places, gathered, straight, q + images * height * width * channels};
    /* Threads share what there is more of. */
    long panels = (n + OUTPUTS - 1) / OUTPUTS, row = in_place ? channels : padded;
    int by_weights = n * padded > images * positions * row;
    long block = whole(INPUTS / row, ROWS, by_weights ? positions : (positions + threads - 1) / threads);
    long spare = CACHED - (block < positions ? block : positions) * row;
    long part = whole((spare < WEIGHTS ? spare : WEIGHTS) / (OUTPUTS * padded), 1,
                      by_weights ? (panels + threads - 1) / threads : panels);
    long blocks = (positions + block - 1) / block, parts = (panels + part - 1) / part, panel = 16 * padded;
#pragma omp parallel num_threads(threads)
    {
        Tiles tiles;
        tiles_begin(&tiles);
        long held = -1, open = -1, room = in_place ? ROWS : block;
        int8_t *unpacked = bits < 8 ? aligned_alloc(64, part * 2 * panel) : NULL;
        uint8_t *patches = aligned_alloc(64, room * padded);
        _Alignas(64) int32_t sums[2][ROWS * OUTPUTS];
        Waiting before = {0};
        long turn = 0;
        memset(patches, 0, room * padded);
#pragma omp for collapse(2) schedule(static)
        for (long b = 0; b < images * blocks; b++)
            for (long t = 0; t < parts; t++) {
                long image = b / blocks, first = b % blocks * block;
                long stop = first + block < positions ? first + block : positions;
                const uint8_t *from = q + image * height * width * channels;
                long begin = t * part * OUTPUTS, end = begin + part * OUTPUTS < n ? begin + part * OUTPUTS : n;
                if (bits < 8 && open != t)
                    for (long c = begin; c < end; c += 16)
                        unpack((const uint8_t *)weights + c * padded * bits / 8, bits, panel, unpacked + (c - begin) * padded);
                const int8_t *ready = bits < 8 ? unpacked : weights + begin * padded;
                long following = n - end < part * OUTPUTS ? n - end : part * OUTPUTS, groups = (stop - first + ROWS - 1) / ROWS;
                const char *next = (const char *)weights + end * padded * bits / 8;
                Ahead ahead = {next, next + following * padded * bits / 8, 0};
                for (long p = first; p < stop; p += ROWS) {
                    if (p > first) /* The first group waits for its own weights. */
                        ahead.rate = (2 * TILE / LINE * bits / 8 + groups - 2) / (groups - 1);
                    long some = stop - p < ROWS ? stop - p : ROWS;
                    Group a = {from + p * channels, channels, offsets};
                    const long *order = places;
                    if (!lies_inside(&of, a.at)) {
                        uint8_t *own = patches + (in_place ? 0 : (p - first) * padded);
                        if (in_place || held != b)
                            gather_group(&of, from, p, some, own);
                        a = (Group){own, padded, gathered}, order = straight;
                    }
                    for (long c = begin; c < end; c += OUTPUTS) {
                        const int8_t *left = ready + (c - begin) * padded, *second = c + 16 < n ? left + panel : left;
                        int32_t *now = sums[turn ^= 1];
                        multiply_group(&of, a, left, second, order, now, &before, &ahead, half);
                        before = waiting(&of, now, image, p, some, scale, bias, y, c, half);
                    }
                }
                held = b, open = t;
            }
        put(&of, &before, ROWS, half);
        free(patches);
        free(unpacked);
        tiles_end(&tiles);
    }
    free(offsets);
}
#endif
