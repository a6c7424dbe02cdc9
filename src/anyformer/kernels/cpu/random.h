// Random numbers for dropout: functions of a key and a counter, so that the backward pass needs no mask.
#pragma once
#include "simd.h"

// The integer hash of Wellons 2018 ("lowbias32") with a key in two places.
template <class T>
T random(T index, const uint32_t* key) {
    T x = index + key[0];
    x = (x ^ x >> 16) * 0x7feb352du + key[1];
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// 0, 1, 2, ...
inline UIntVec lane_indices() {
    uint32_t lanes[LANES];
    for (uint32_t lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    return load_as<UIntVec>(lanes);
}

// The random numbers of a vector whose first number has a counter (see kernels/dropout.py). Their key is made of the
// call's seed and the upper half of the counter, and they are counted by the lower half.
struct Counted {
    uint32_t key[2], index;

    Counted() = default;
    Counted(int64_t counter, const uint32_t* seed) : index(uint32_t(counter)) {
        const uint32_t plane = uint32_t(counter >> 32) * 2;
        key[0] = random(plane, seed);
        key[1] = random(plane + 1, seed);
    }

    UIntVec bits(UIntVec offsets) const { return random(offsets + index, key); }
};
