#include "lib.h"
#include <stdarg.h>

void putch(char c)
{
    while (!(REG8(UART_LSR) & 0x20)) /* transmitter empty */
        ;
    REG8(UART) = c;
}

static void put_number(uint64_t value, unsigned base, int width, char pad)
{
    char digits[20];
    int n = 0;
    do {
        digits[n++] = "0123456789abcdef"[value % base];
        value /= base;
    } while (value);
    while (width-- > n)
        putch(pad);
    while (n)
        putch(digits[--n]);
}

void print(const char *format, ...)
{
    va_list args;
    va_start(args, format);
    for (const char *f = format; *f; f++) {
        if (*f != '%') {
            putch(*f);
            continue;
        }
        char pad = f[1] == '0' ? '0' : ' ';
        int width = 0, is_long = 0;
        for (f++; *f >= '0' && *f <= '9'; f++)
            width = width * 10 + *f - '0';
        for (; *f == 'l'; f++)
            is_long = 1;
        switch (*f) {
        case 's':
            for (const char *s = va_arg(args, const char *); *s; s++)
                putch(*s);
            break;
        case 'c':
            putch(va_arg(args, int));
            break;
        case 'd': {
            int64_t v = is_long ? va_arg(args, int64_t) : va_arg(args, int);
            if (v < 0)
                putch('-');
            put_number(v < 0 ? -(uint64_t)v : (uint64_t)v, 10, width, pad);
            break;
        }
        case 'u':
        case 'x': {
            uint64_t v = is_long ? va_arg(args, uint64_t) : va_arg(args, unsigned);
            put_number(v, *f == 'x' ? 16 : 10, width, pad);
            break;
        }
        default:
            putch(*f);
        }
    }
    va_end(args);
}

void finish(int code)
{
    REG32(FINISHER) = code == 0 ? 0x5555 : (uint32_t)code << 16 | 0x3333;
    for (;;)
        ;
}

__attribute__((weak)) uint64_t trap(uint64_t cause, uint64_t epc, uint64_t tval)
{
    print("unexpected trap: cause %lx at %lx, tval %lx\n", cause, epc, tval);
    finish(99);
}

__attribute__((weak)) void secondary(uint64_t hart) { (void)hart; }
