// Tests without a library: TEST registers a function, CHECK ends it with the line that failed.
#pragma once

#include <cstdio>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

struct Test {
    const char* name;
    void (*body)();
    inline static std::vector<Test> all;
    Test(const char* test_name, void (*test_body)()) : name(test_name), body(test_body) {
        all.push_back(*this);
    }
};

#define TEST(name)                                    \
    static void name();                               \
    static const Test registered_##name(#name, name); \
    static void name()

// The rest of the arguments is a printf format with values that explain the case.
#define CHECK(condition, ...)                                                                        \
    do {                                                                                             \
        if (!(condition)) {                                                                          \
            char text[512];                                                                          \
            std::snprintf(text, sizeof text, " " __VA_ARGS__);                                       \
            throw std::runtime_error(std::string(__FILE__) + ":" + std::to_string(__LINE__) + ": " + \
                                     #condition + text);                                             \
        }                                                                                            \
    } while (false)

template <class T>
bool same_bits(const std::vector<T>& a, const std::vector<T>& b) {
    return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0;
}
