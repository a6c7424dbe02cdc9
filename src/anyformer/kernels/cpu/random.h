// Random numbers for dropout: functions of a seed and an index, so that the backward pass needs no mask.
#pragma once
#include "simd.h"

// The integer hash of Wellons 2018 ("lowbias32") with a key in two places.
inline UIntVec random(UIntVec index, const uint32_t* seed) {
    UIntVec x = index + seed[0];
    x = (x ^ x >> 16) * 0x7feb352du + seed[1];
    x = (x ^ x >> 15) * 0x846ca68bu;
    return x ^ x >> 16;
}

// 0, 1, 2, ...
inline UIntVec lane_indices() {
    uint32_t lanes[LANES];
    for (uint32_t lane = 0; lane < LANES; lane++) lanes[lane] = lane;
    return load_as<UIntVec>(lanes);
}
