// Allocates from a thread's workspace.
#pragma once
#include "simd.h"

struct Arena {
    char* next;

    template <class T>
    T* allocate(int64_t count) {
        auto allocated = reinterpret_cast<T*>(next);
        next += round_up(count * int64_t(sizeof(T)), 64);
        return allocated;
    }
};
