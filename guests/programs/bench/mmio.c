/* Device accesses: REGISTER 0 reads the UART's line status, 1 writes its scratch register, 2 reads CLINT mtime. */
#include "../bench.h"

#define COUNT SCALE(4000000ul, 20000ul)
#if REGISTER == 0
BENCH("mmio-read", COUNT, COUNT * 0x20);
#elif REGISTER == 1
BENCH("mmio-write", COUNT, (uint8_t)(COUNT - 1));
#else
BENCH("mtime-read", COUNT, COUNT);
#endif

uint64_t kernel(void)
{
    uint64_t check = 0;
#if REGISTER == 0
    for (uint64_t i = 0; i < COUNT; i++)
        check += REG8(UART_LSR) & 0x20; /* always empty here: nobody writes */
#elif REGISTER == 1
    for (uint64_t i = 0; i < COUNT; i++)
        REG8(UART_SCR) = i;
    check = REG8(UART_SCR);
#else
    uint64_t last = 0;
    for (uint64_t i = 0; i < COUNT; i++) {
        uint64_t now = mtime();
        check += now >= last; /* a clock does not go back */
        last = now;
    }
#endif
    return check;
}
