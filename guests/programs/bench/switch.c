/* A switch interpreter: one indirect jump, from one place, for each operation of a byte code. The program adds up the
 * lengths of the Collatz sequences that start at 1 to LIMIT. */
#include "../bench.h"

#define LIMIT SCALE(30000, 300)
BENCH("switch", LIMIT, SCALE(2864311, 14167));

enum op { PUSH, LOAD, STORE, ADD, MUL, SHR1, ODD, IS_ONE, LESS, JUMP, BRANCH, HALT };
enum variable { START, X, STEPS, VARIABLES };

static const struct insn {
    uint8_t op, arg;
} program[] = {
    [0] = { PUSH, 1 }, { STORE, START },
    /* each start: */
    [2] = { LOAD, START }, { STORE, X },
    /* each step: */
    [4] = { LOAD, X }, { IS_ONE, 0 }, { BRANCH, 23 },
    [7] = { LOAD, STEPS }, { PUSH, 1 }, { ADD, 0 }, { STORE, STEPS },
    [11] = { LOAD, X }, { ODD, 0 }, { BRANCH, 17 },
    [14] = { LOAD, X }, { SHR1, 0 }, { JUMP, 21 },
    [17] = { LOAD, X }, { PUSH, 3 }, { MUL, 0 }, { JUMP, 28 },
    [21] = { STORE, X }, { JUMP, 4 },
    /* next start: */
    [23] = { LOAD, START }, { PUSH, 1 }, { ADD, 0 }, { STORE, START }, { JUMP, 30 },
    /* the rest of 3x + 1: */
    [28] = { PUSH, 1 }, { JUMP, 34 },
    [30] = { LOAD, START }, { LESS, 0 }, { BRANCH, 2 }, { HALT, 0 },
    [34] = { ADD, 0 }, { JUMP, 21 },
};

static NOINLINE uint64_t interpret(const struct insn *code, uint64_t limit)
{
    uint64_t stack[8], variables[VARIABLES] = { 0 };
    uint64_t *top = stack;
    for (const struct insn *pc = code;; pc++) {
        switch ((enum op)pc->op) {
        case PUSH: *++top = pc->arg; break;
        case LOAD: *++top = variables[pc->arg]; break;
        case STORE: variables[pc->arg] = *top--; break;
        case ADD: top--, *top += top[1]; break;
        case MUL: top--, *top *= top[1]; break;
        case SHR1: *top >>= 1; break;
        case ODD: *top &= 1; break;
        case IS_ONE: *top = *top == 1; break;
        case LESS: *top = *top <= limit; break;
        case JUMP: pc = code + pc->arg - 1; break;
        case BRANCH: if (*top--) pc = code + pc->arg - 1; break;
        case HALT: return variables[STEPS];
        }
    }
}

uint64_t kernel(void) { return interpret(program, LIMIT); }
