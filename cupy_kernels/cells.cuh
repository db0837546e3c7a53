#pragma once
// Samples listed by the cell that they read; `lau_backward.cu` builds the lists.
#include "common.cuh"

constexpr int SLOPE_Y = 1, SLOPE_X = 2;

// The position of a pixel of the output before its offset is added, and with it; a null `offset` stands for zeros.
template <typename A> __device__ __forceinline__ Position<A> base_of(
    int pixel, int W, int kh, int kw, A rkh, A rkw, Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int Y = quotient(pixel, by_W), X = pixel - Y * W, i = quotient(Y, by_kh), j = quotient(X, by_kw);
    return {base_position<A>(i, Y - i * kh, kh, rkh), base_position<A>(j, X - j * kw, kw, rkw)};
}
template <typename A> __device__ __forceinline__ Position<A> moved(Position<A> p, const A* rows, size_t columns) {
    if (rows != nullptr) {
        p.y += rows[0];
        p.x += rows[columns];
    }
    return p;
}

// See `offset_plane`.
__device__ __forceinline__ size_t plane_of(int map, int M, int HW, Divisor by_M) {
    const int image = quotient(map, by_M);
    return ((size_t)image * M + map) * HW;  // image 2 M + map - image M
}

// The cell of a map that a position reads; -1 for NaN.
template <typename A> __device__ __forceinline__ int cell_of(const Position<A>& p, int h, int w) {
    return p.y == p.y && p.x == p.x ? locate(p.y, h).cell * w + locate(p.x, w).cell : -1;
}

// Adds the samples of a warp to the counters of their cells (-1: no cell) and returns each sample's place behind those that
// were there before. Samples of one cell share one atomic.
__device__ __forceinline__ int take_places(int* __restrict__ counters, int cell) {
    const unsigned peers = __match_any_sync(ALL_LANES, cell);
    const int lane = threadIdx.x & 31, leader = __ffs((int)peers) - 1;
    int place = 0;
    if (lane == leader && cell >= 0) place = atomicAdd(counters + cell, __popc(peers));
    return __shfl_sync(ALL_LANES, place, leader) + __popc(peers & ((1u << lane) - 1));
}

// A sample: its fractions, its pixel within the map, and the derivatives that exist.
template <typename A> struct alignas(16) Entry { A ty, tx; int pixel, slopes; };

// At most `capacity` samples of one cell.
struct Chunk { int cell, begin, length; };

// The factors by which a gather multiplies the gradient, from the values a b / d e at a cell's corners: a sample's value is
// a + ty down + tx right + ty tx twist.
template <typename A> struct Slopes { A down, right, twist; };

template <typename A> __device__ __forceinline__ Slopes<A> slopes_of(A a, A b, A d, A e) {
    return {d - a, b - a, (e - b) - (d - a)};
}
