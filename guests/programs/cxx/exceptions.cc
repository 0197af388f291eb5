// Exceptions as a C++ program throws them: across frames, through destructors, again, out of handlers and constructors.
#include "runtime.h"
extern "C" {
#include <stdio.h>
#include <stdlib.h>
}

static unsigned long check = 14695981039346656037ul;
static int failures;

static void note(long value) { check = (check ^ static_cast<unsigned long>(value)) * 1099511628211ul; }

static void expect(const char *what, long found, long wanted) {
    note(found);
    if (found != wanted) {
        failures++;
        printf("%s: %ld, not %ld\n", what, found, wanted);
    }
}

// The order in which objects die, as digits.
static long order;
struct Noisy {
    int digit;
    explicit Noisy(int n) : digit(n) {}
    Noisy(const Noisy &) = delete;
    ~Noisy() { order = order * 10 + digit; }
};

#define APART __attribute__((noinline, noclone))

APART static int thrower(int n) {
    if (n > 0) throw n;
    return n - 1;
}

APART static int deep(int frames, int n) {
    Noisy noisy(frames % 9 + 1);
    volatile char pad[24 * 8];
    pad[frames] = char(n);
    return frames ? deep(frames - 1, n) + pad[frames] : thrower(n);
}

static void across_frames() {
    order = 0;
    long got = 0;
    try {
        got = deep(8, 42);
    } catch (long) {
        got = -1;
    } catch (int n) {
        got = n;
    }
    expect("an int across nine frames", got, 42);
    expect("destructors, innermost first", order, 123456789);
    expect("no throw", deep(3, 0), -1);
}

struct Base { int value = 1; virtual ~Base() {} };
struct Other { long other = 2; virtual ~Other() {} };
struct Single : Base { Single() { value = 3; } };
struct Both : Other, Base { Both() { value = 4; } };
struct Virtual : virtual Base { Virtual() { value = 5; } };

template <class T> APART static void throws() { throw T(); }

template <class T> static int caught_as_base() {
    try {
        throws<T>();
    } catch (Other &) {
        return 100;
    } catch (Base &base) {
        return base.value;
    } catch (...) {
        return 200;
    }
    return 300;
}

static void by_class() {
    expect("a class", caught_as_base<Base>(), 1);
    expect("a class derived from it", caught_as_base<Single>(), 3);
    expect("the first of two bases", caught_as_base<Both>(), 100);
    expect("a virtual base", caught_as_base<Virtual>(), 5);
    int second = 0;
    try {
        throws<Both>();
    } catch (Base &base) {
        second = base.value;
    }
    expect("the second of two bases, where it is", second, 4);
    expect("none of them", caught_as_base<double>(), 200);
    const char *text = "no";
    try {
        throw "thrown";
    } catch (const char *thrown) {
        text = thrown;
    }
    expect("a pointer", text[0], 't');
}

APART static void again(int depth) {
    Noisy noisy(depth);
    try {
        if (depth == 0) throw 7;
        again(depth - 1);
    } catch (int &n) {
        n += depth;
        throw;
    }
}

static void rethrown() {
    order = 0;
    long got = 0;
    try {
        again(3);
    } catch (int n) {
        got = n;
    }
    expect("changed by each that throws it again", got, 7 + 1 + 2 + 3);
    expect("frames between", order, 123);
}

static long alive;
struct Counted {
    Counted() { alive++; }
    Counted(const Counted &) { alive++; }
    ~Counted() { alive--; }
};

static void out_of_a_handler() {
    long got = 0;
    try {
        try {
            throw Counted();
        } catch (Counted &) {
            try {
                throw 5;
            } catch (int n) {
                got = n;
            }
            throw 'c';
        }
    } catch (char c) {
        got = got * 1000 + c;
    }
    expect("one within another, and another instead", got, 5000 + 'c');
    expect("exceptions that are left", alive, 0);
}

struct Member {
    Noisy noisy;
    explicit Member(int n) : noisy(n) {
        if (n == 3) throw 3.5;
    }
};
struct Whole {
    Member a{1}, b{2}, c{3}, d{4};
    ~Whole() { order = -1; }
};

static void out_of_a_constructor() {
    order = 0;
    double got = 0;
    try {
        Whole whole;
    } catch (double x) {
        got = x;
    }
    expect("a double", long(got * 10), 35);
    expect("what was built, backwards", order, 321);
}

// A destructor that throws and catches while an exception is under way.
struct Careful {
    ~Careful() {
        try {
            throw 1L;
        } catch (long n) {
            order = order * 10 + n;
        }
    }
};

static void within_a_destructor() {
    order = 0;
    long got = 0;
    try {
        Careful first;
        Noisy second(2);
        throw 9;
    } catch (int n) {
        got = n;
    }
    expect("the outer one", got, 9);
    expect("the inner one came between", order, 21);
}

// Registers that a callee saves are the catcher's again, those of the floating-point unit too.
APART static double spoil(double x, int depth) {
    double a = x * 1.5, b = x - 2, c = x / 3;
    if (depth == 0) throw depth;
    return spoil(a + b, depth - 1) + a * b - c;
}

static void registers() {
    volatile double in = 0.625;
    double a = in * 2, b = in + 1, c = a * b;
    long i = long(a * 100), j = i * 3;
    for (int n = 0; n < 3; n++) {
        try {
            c += spoil(a, 5);
        } catch (int) {
            c += a - b;
            j += i;
        }
    }
    expect("doubles", long(c * 1024), long((1.25 * 1.625 + 3 * (1.25 - 1.625)) * 1024));
    expect("integers", j, 125 * 6);
}

static void many() {
    long sum = 0;
    for (int n = 1; n <= 50; n++) {
        try {
            deep(n % 7, n);
        } catch (int got) {
            sum += got;
        }
    }
    expect("fifty in turn", sum, 50 * 51 / 2);
    void *heap = malloc(64);
    free(heap);
    expect("no memory is lost", alive, 0);
}

APART static void lets_nothing_out() noexcept { thrower(1); }

static void finish() {
    printf("exceptions check=%016lx\n", check);
    exit(failures ? 1 : 0);
}

int main() {
    across_frames();
    by_class();
    rethrown();
    out_of_a_handler();
    out_of_a_constructor();
    within_a_destructor();
    registers();
    many();
    // The end, by way of std::terminate.
    std::terminate_handler = finish;
    lets_nothing_out();
    puts("an exception came out of a function that is noexcept");
    return 2;
}
