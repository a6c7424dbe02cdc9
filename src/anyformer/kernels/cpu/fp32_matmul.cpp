// Matrix products of float32 in registers of 512 bits, of which MKL uses a half on processors that aren't Intel's.
#include "register_matmul.h"

extern "C" {

// Without AVX-512 `run` does nothing.
EXPORTED int64_t supported() { return REGISTER_BYTES == 64; }

EXPORTED int64_t workspace_size(const MatmulArgs* args) {
#if defined(__AVX512F__)
    return RegisterMatmul<false>::workspace_size(*args);
#else
    return 0;
#endif
}

EXPORTED void run(const MatmulArgs* args, void* workspace) {
#if defined(__AVX512F__)
    parallel(args->num_threads,
             [&](Threads threads) { RegisterMatmul<false>(*args, static_cast<char*>(workspace)).run(threads); });
#endif
}
}
