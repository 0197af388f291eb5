// The part of the C++ runtime that programs here see.
#pragma once

namespace std {
extern void (*terminate_handler)();
[[noreturn]] void terminate() noexcept;

// What the compiler's tables of types begin with.
class type_info {
public:
    virtual ~type_info();
    virtual bool catches(const type_info *thrown, void **object) const;
    virtual bool is_class() const { return false; }
    virtual bool is_pointer() const { return false; }
    bool operator==(const type_info &other) const;

protected:
    const char *name;
};
}
