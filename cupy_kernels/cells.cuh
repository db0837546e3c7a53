#pragma once
// Samples listed by the cell that they read; `lau_backward.cu` builds the lists.
#include "common.cuh"

constexpr int SLOPE_Y = 1, SLOPE_X = 2;

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
