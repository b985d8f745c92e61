/* Intel's matrix tiles (AMX): sixteen rows of 64 bytes each. */
#ifdef __AMX_TILE__
#include <immintrin.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

static inline int tiles_allowed(void) { /* asks Linux for them, once a process */
    return syscall(SYS_arch_prctl, 0x1023, 18) == 0;
}

typedef struct {
    uint8_t palette, start, reserved[14];
    uint16_t columns[16];
    uint8_t rows[16];
} Tiles;

static inline void tiles_begin(Tiles *before) {
    Tiles ours = {.palette = 1};
    for (int i = 0; i < 8; i++)
        ours.columns[i] = 64, ours.rows[i] = 16;
    _tile_storeconfig(before);
    _tile_loadconfig(&ours);
}

static inline void tiles_end(const Tiles *before) { /* oneDNN may count on its own configuration */
    _tile_loadconfig(before);
}
#endif
