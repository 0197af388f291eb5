/* A guest with several rows: suite() measures one after the other, and each prints a line of its own. */
#pragma once
#include "bench.h"

void suite(void);

/* Times kernel(arg) and prints NAME's line; a result other than expected fails the run. */
void measure(const char *name, uint64_t events, uint64_t (*kernel)(uint64_t), uint64_t arg, uint64_t expected);

/* Fails the run unless result is what it should be. */
void check(const char *name, uint64_t result, uint64_t expected);
