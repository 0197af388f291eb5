// What a C++ program needs of its runtime to throw and catch, by the Itanium C++ ABI, over libgcc's unwinder: Debian has no
// libstdc++ for the bare target. One thread, no dependent exceptions, no exception specifications. crtbegin.o names the tables
// of frames to libgcc, and crtend.o ends them.
//
//   throw ─▶ __cxa_throw ─▶ _Unwind_RaiseException ─▶ for each frame, by .eh_frame: __gxx_personality_v0
//            search: does an action of the call site catch this type?     clean up: set registers, go to the landing pad
extern "C" {
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
}
#include "runtime.h"
#include <unwind.h>

void *operator new(size_t size) { return malloc(size); }
void operator delete(void *p) noexcept { free(p); }
void operator delete(void *p, size_t) noexcept { free(p); }

// The classes of type_info: how a thrown type is matched with one that is caught.
namespace std {
type_info::~type_info() {}
bool type_info::catches(const type_info *thrown, void **) const { return *this == *thrown; }
bool type_info::operator==(const type_info &other) const { return name == other.name || strcmp(name, other.name) == 0; }
[[noreturn]] void terminate() noexcept {
    if (terminate_handler) terminate_handler();
    abort();
}
void (*terminate_handler)() = nullptr;
}

namespace __cxxabiv1 {
// The destructors are the key functions: with them come the tables, and those of int, char and so on.
struct __fundamental_type_info : std::type_info { ~__fundamental_type_info() override; };
__fundamental_type_info::~__fundamental_type_info() {}

struct __class_type_info : std::type_info {
    ~__class_type_info() override;
    bool catches(const std::type_info *thrown, void **object) const override;
    // Finds `base` among the bases of this class; `object` becomes that part of it.
    virtual bool upcast(const __class_type_info *base, void **) const { return *this == *base; }
    bool is_class() const override { return true; }
};
__class_type_info::~__class_type_info() {}
bool __class_type_info::catches(const std::type_info *thrown, void **object) const {
    return thrown->is_class() && static_cast<const __class_type_info *>(thrown)->upcast(this, object);
}

struct __si_class_type_info : __class_type_info {
    const __class_type_info *base_type;
    ~__si_class_type_info() override;
    bool upcast(const __class_type_info *base, void **object) const override {
        return *this == *base || base_type->upcast(base, object);
    }
};
__si_class_type_info::~__si_class_type_info() {}

struct __vmi_class_type_info : __class_type_info {
    unsigned flags, count;
    struct { const __class_type_info *type; long offset_flags; } bases[1];
    ~__vmi_class_type_info() override;
    bool upcast(const __class_type_info *base, void **object) const override;
};
__vmi_class_type_info::~__vmi_class_type_info() {}
bool __vmi_class_type_info::upcast(const __class_type_info *base, void **object) const {
    if (*this == *base) return true;
    for (unsigned n = 0; n < count; n++) {
        // Bit 0: a virtual base, whose offset is in the object's table. Bit 1: a public one.
        long offset = bases[n].offset_flags >> 8;
        char *part = static_cast<char *>(*object);
        if (bases[n].offset_flags & 1) offset = *reinterpret_cast<long *>(*reinterpret_cast<char **>(part) + offset);
        void *there = part + offset;
        if ((bases[n].offset_flags & 2) && bases[n].type->upcast(base, &there)) {
            *object = there;
            return true;
        }
    }
    return false;
}

struct __pointer_type_info : std::type_info {
    unsigned flags;
    const std::type_info *pointee;
    ~__pointer_type_info() override;
    bool is_pointer() const override { return true; }
};
__pointer_type_info::~__pointer_type_info() {}
}

namespace {
struct Exception {
    const std::type_info *type;
    void (*destroy)(void *);
    Exception *next_caught;
    int handlers; // negative while it is thrown again
    void *adjusted;
    uintptr_t landing_pad;
    int selector;
    _Unwind_Exception unwind; // the object itself lies behind it
};
static_assert(sizeof(Exception) % alignof(max_align_t) == 0, "the object is aligned");

constexpr _Unwind_Exception_Class OURS = 0x4e4f544443585800; // "NOTDCXX\0"
Exception *caught;

Exception *of(_Unwind_Exception *unwind) {
    return reinterpret_cast<Exception *>(reinterpret_cast<char *>(unwind) - offsetof(Exception, unwind));
}

void release(_Unwind_Reason_Code, _Unwind_Exception *unwind) {
    Exception *e = of(unwind);
    if (e->destroy) e->destroy(e + 1);
    free(e);
}

// A reader of the language-specific data: what a call site leads to.
struct Reader {
    const uint8_t *at;

    uint64_t uleb() {
        uint64_t value = 0;
        for (int shift = 0;; shift += 7) {
            uint8_t byte = *at++;
            value |= uint64_t(byte & 0x7f) << shift;
            if (!(byte & 0x80)) return value;
        }
    }
    int64_t sleb() {
        uint64_t value = 0;
        int shift = 0;
        uint8_t byte;
        do {
            byte = *at++;
            value |= uint64_t(byte & 0x7f) << shift;
            shift += 7;
        } while (byte & 0x80);
        return shift < 64 && (byte & 0x40) ? int64_t(value | -(uint64_t(1) << shift)) : int64_t(value);
    }
    template <class T> int64_t fixed() {
        T value;
        memcpy(&value, at, sizeof value);
        at += sizeof value;
        return value;
    }
    // DW_EH_PE_*: a format, what it is relative to, and whether the address is there.
    uintptr_t encoded(uint8_t encoding) {
        uintptr_t here = reinterpret_cast<uintptr_t>(at);
        int64_t value = 0;
        switch (encoding & 0x0f) {
        case 0x00: case 0x04: case 0x0c: value = fixed<int64_t>(); break;
        case 0x01: value = uleb(); break;
        case 0x02: value = fixed<uint16_t>(); break;
        case 0x03: value = fixed<uint32_t>(); break;
        case 0x09: value = sleb(); break;
        case 0x0a: value = fixed<int16_t>(); break;
        case 0x0b: value = fixed<int32_t>(); break;
        default: abort();
        }
        if (value == 0) return 0;
        if ((encoding & 0x70) == 0x10) value += here;
        return encoding & 0x80 ? *reinterpret_cast<uintptr_t *>(value) : value;
    }
};

size_t size_of(uint8_t encoding) {
    switch (encoding & 7) {
    case 2: return 2;
    case 3: return 4;
    default: return 8;
    }
}
}

extern "C" {
void *__cxa_allocate_exception(size_t size) noexcept {
    auto *e = static_cast<Exception *>(calloc(1, sizeof(Exception) + size));
    if (!e) std::terminate();
    return e + 1;
}

void __cxa_free_exception(void *object) noexcept { free(static_cast<Exception *>(object) - 1); }

[[noreturn]] void __cxa_throw(void *object, std::type_info *type, void (*destroy)(void *)) {
    Exception *e = static_cast<Exception *>(object) - 1;
    e->type = type;
    e->destroy = destroy;
    e->unwind.exception_class = OURS;
    e->unwind.exception_cleanup = release;
    _Unwind_RaiseException(&e->unwind);
    std::terminate(); // nothing catches it
}

void *__cxa_begin_catch(void *unwind) noexcept {
    Exception *e = of(static_cast<_Unwind_Exception *>(unwind));
    if (e->handlers < 0) e->handlers = -e->handlers;
    e->handlers++;
    if (e != caught) {
        e->next_caught = caught;
        caught = e;
    }
    return e->adjusted;
}

void __cxa_end_catch() {
    Exception *e = caught;
    if (!e) return;
    if (e->handlers < 0) {
        // It is on its way again, and whatever catches it puts it back.
        if (++e->handlers == 0) caught = e->next_caught;
    } else if (--e->handlers == 0) {
        caught = e->next_caught;
        _Unwind_DeleteException(&e->unwind);
    }
}

[[noreturn]] void __cxa_rethrow() {
    if (caught) {
        caught->handlers = -caught->handlers;
        _Unwind_Resume_or_Rethrow(&caught->unwind);
    }
    std::terminate();
}

[[noreturn]] void __cxa_call_terminate(void *) noexcept { std::terminate(); }
[[noreturn]] void __cxa_pure_virtual() { std::terminate(); }

_Unwind_Reason_Code __gxx_personality_v0(int version, _Unwind_Action actions, _Unwind_Exception_Class exception_class,
                                         _Unwind_Exception *unwind, _Unwind_Context *context) {
    if (version != 1 || exception_class != OURS) return _URC_FATAL_PHASE1_ERROR;
    Exception *e = of(unwind);
    auto install = [&](uintptr_t pad, int selector) {
        _Unwind_SetGR(context, __builtin_eh_return_data_regno(0), reinterpret_cast<uintptr_t>(unwind));
        _Unwind_SetGR(context, __builtin_eh_return_data_regno(1), selector);
        _Unwind_SetIP(context, pad);
        return _URC_INSTALL_CONTEXT;
    };
    if (actions & _UA_HANDLER_FRAME) return install(e->landing_pad, e->selector);

    Reader header{static_cast<const uint8_t *>(_Unwind_GetLanguageSpecificData(context))};
    if (!header.at) return _URC_CONTINUE_UNWIND;
    uintptr_t function = _Unwind_GetRegionStart(context), pads = function;
    if (uint8_t encoding = *header.at++; encoding != 0xff) pads = header.encoded(encoding);
    uint8_t type_encoding = *header.at++;
    const uint8_t *types = nullptr;
    if (type_encoding != 0xff) {
        uint64_t offset = header.uleb();
        types = header.at + offset;
    }
    uint8_t site_encoding = *header.at++;
    uint64_t length = header.uleb();
    const uint8_t *table = header.at + length;

    int before = 0;
    uintptr_t pc = _Unwind_GetIPInfo(context, &before) - !before;
    while (header.at < table) {
        uintptr_t start = header.encoded(site_encoding), size = header.encoded(site_encoding);
        uintptr_t pad = header.encoded(site_encoding), action = header.uleb();
        if (pc < function + start || pc >= function + start + size) continue;
        if (!pad) return _URC_CONTINUE_UNWIND;
        Reader actions_of{table + action - 1};
        bool cleanup = action == 0;
        while (action) {
            int64_t filter = actions_of.sleb();
            const uint8_t *here = actions_of.at;
            int64_t next = actions_of.sleb();
            if (filter > 0) {
                Reader entry{types - filter * size_of(type_encoding)};
                auto *type = reinterpret_cast<const std::type_info *>(entry.encoded(type_encoding));
                // A handler gets the object, or the pointer that was thrown.
                void *object = e + 1;
                if (e->type->is_pointer()) object = *static_cast<void **>(object);
                if (!type || type->catches(e->type, &object)) {
                    if (actions & _UA_SEARCH_PHASE) {
                        e->adjusted = object;
                        e->landing_pad = pads + pad;
                        e->selector = filter;
                        return _URC_HANDLER_FOUND;
                    }
                    return install(pads + pad, filter);
                }
            }
            cleanup |= filter == 0;
            if (!next) break;
            actions_of.at = here + next;
        }
        if (cleanup && !(actions & _UA_SEARCH_PHASE)) return install(pads + pad, 0);
        return _URC_CONTINUE_UNWIND;
    }
    // A call that no site covers is in a function that lets nothing out.
    std::terminate();
}
}
