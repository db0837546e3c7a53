#pragma once
// Tiles of an output in NCHW order, and the region of the input that the pixels of a tile sample.
//
// A block processes a tile, and of its region some channels at a time in shared memory, where a cell's channels lie next to
// one another: they are read and computed as vectors although the tensors are in NCHW order. The region is the bounding box
// of what the pixels sample, so it follows the offsets wherever they point; only if they scatter further than its capacity
// is the input read from global memory.
#include "common.cuh"

// The largest `v` of a warp, in all lanes.
__device__ __forceinline__ int warp_max(int v) {
#if defined(LAU_EMULATED) || __CUDA_ARCH__ >= 800
    return __reduce_max_sync(ALL_LANES, v);
#else
#pragma unroll
    for (int d = 16; d > 0; d /= 2) v = max(v, __shfl_xor_sync(ALL_LANES, v, d));
    return v;
#endif
}

// The bounding box of cells: the largest of -row, -column, row, column. In shared memory; `clear` by one thread.
struct Box {
    int most[4];

    __device__ __forceinline__ void clear() { most[0] = most[1] = most[2] = most[3] = -(1 << 30); }
    // By whole warps, with the extremes of each lane's cells.
    __device__ __forceinline__ void include(int top, int left, int bottom, int right) {
        const int all[4] = {warp_max(-top), warp_max(-left), warp_max(bottom), warp_max(right)};
        if (threadIdx.x % 32 == 0)
#pragma unroll
            for (int i = 0; i < 4; ++i) atomicMax(most + i, all[i]);
    }
};
