#pragma once
// Shared by the loss kernels. Per pixel, L is the cross-entropy of the LaU logits. Its rivals are L', that of the bilinear
// logits (equation 3), or those of the four corners of the pixel's cell (equation 4).
#include "cells.cuh"

// The rivals, for equation 3 with the treatment of L = L'; NO_RIVAL: the weight of all pixels is 1.
constexpr int TIE_LOSES = 0, TIE_WINS = 1, REGRESSION = 2, NO_RIVAL = 3;

// Replaces channels that do not exist: finite, so that a weight of 0 gives 0, and without weight in a softmax.
constexpr float NO_LOGIT = -1e30f;

__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// A sum that the compiler does not contract; see `mad`.
#ifdef LAU_EMULATED
template <typename A> __device__ __forceinline__ A plus(A a, A b) { return a + b; }
#else
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }
#endif

// The loss of a label that is not a class.
template <typename A> __device__ __forceinline__ A not_a_number() { return (A)__int_as_float(0x7fffffff); }
template <typename A> __device__ __forceinline__ A infinity() { return (A)__int_as_float(0x7f800000); }

// ------------------------------------------------------------------------------------------- softmax, in base 2

constexpr double LOG2_E = 1.4426950408889634, LN_2 = 0.6931471805599453;

__device__ __forceinline__ float exp_2(float v) { return exp2f(v); }
__device__ __forceinline__ double exp_2(double v) { return exp(v * LN_2); }
__device__ __forceinline__ float log_2(float v) { return __log2f(v); }
__device__ __forceinline__ double log_2(double v) { return log(v) * LOG2_E; }
// Of a number by a sum of exponentials, within 2 units in the last place.
__device__ __forceinline__ float ratio(float v, float sum) { return __fdividef(v, sum); }
__device__ __forceinline__ double ratio(double v, double sum) { return v / sum; }

// One channel of a cell: at fractions (ty, tx) the logit is near + ty down + tx (right + ty twist), in base 2 and less the
// cell's peak, which is the largest logit of all channels at its four corners. No sample of the cell exceeds it, so that no
// exponential overflows.
template <typename A> struct Plane { A near, down, right, twist; };

template <typename A> __device__ __forceinline__ Plane<A> plane_of(A a, A b, A d, A e, A peak) {
    const Slopes<A> s = slopes_of(a, b, d, e);
    return {mad(a, (A)LOG2_E, -peak), s.down * (A)LOG2_E, s.right * (A)LOG2_E, s.twist * (A)LOG2_E};
}
template <typename T> __device__ __forceinline__ Plane<Acc<T>> plane_at(const T* u, int to_right, int to_below, Acc<T> peak) {
    return plane_of<Acc<T>>(widen(u[0]), widen(u[to_right]), widen(u[to_below]), widen(u[to_below + to_right]), peak);
}

// The only formulas for a sampled logit of the losses with M = 1, and for its derivative along x: equal offsets give equal
// bits.
template <typename A> __device__ __forceinline__ A along_x(const Plane<A>& p, A ty) { return mad(ty, p.twist, p.right); }
template <typename A> __device__ __forceinline__ A logit_of(const Plane<A>& p, A ty, A tx) {
    return mad(tx, along_x(p, ty), mad(ty, p.down, p.near));
}

// `peaks` starts at the cell's first corner.
template <typename A> __device__ __forceinline__ A peak_of_cell(const A* peaks, int right, int below) {
    return larger(larger(peaks[0], peaks[right]), larger(peaks[below], peaks[below + right]));
}

// A sum of exponentials that is smaller may have lost digits: where the largest logit of a sample is far below the peak,
// exponentials beside its own are flushed to 0. Such a sum is computed again, less the largest logit itself.
__device__ __forceinline__ bool is_lost(float sum) { return !(sum >= 0x1p-60f); }
__device__ __forceinline__ bool is_lost(double sum) { return !(sum >= 0x1p-600); }

// What a loss needs of the logit of the label. `e` is its exponential, exactly as the sum contains it: where that is all there
// is, the loss is 0 and nothing else, so that confident pixels tie. An exponential that is too small is not used.
template <typename A> struct Labelled { A e, inverse, extra; };

template <typename A> __device__ __forceinline__ Labelled<A> labelled(A logit) {
    constexpr bool WIDE = sizeof(A) == 8;
    const A e = exp_2(logit);
    if (logit > (A)(WIDE ? -500 : -60)) return {e, ratio((A)1, e), (A)0};
    return {(A)0, (A)(WIDE ? 0x1p700 : 0x1p90), -logit - (A)(WIDE ? 700 : 90)};  // 1 is nothing beside a sum that is not lost
}
template <typename A> __device__ __forceinline__ A loss_of(A sum, const Labelled<A>& label) {
    return plus(log_2(mad(plus(sum, -label.e), label.inverse, (A)1)), label.extra);
}

// The largest logit of a sample, by all lanes of a warp together.
template <typename T> __device__ __forceinline__ Acc<T> largest_logit(
    const T* u, int to_right, int to_below, int C, Acc<T> peak, Acc<T> ty, Acc<T> tx) {
    Acc<T> largest = -infinity<Acc<T>>();
    for (int c = threadIdx.x % 32; c < C; c += 32) largest = larger(largest, logit_of(plane_at(u + c, to_right, to_below, peak), ty, tx));
#pragma unroll
    for (int d = 16; d > 0; d /= 2) largest = larger(largest, __shfl_xor_sync(ALL_LANES, largest, d));
    return largest;
}

// The sum of a sample's exponentials less `shift`. Each group of LANES lanes of a warp adds up all channels, in the order
// that gives the same bits wherever it is done: lane by lane, then by `group_sum`.
template <int LANES, typename T> __device__ __forceinline__ Acc<T> sum_of_group(
    const T* u, int to_right, int to_below, int C, Acc<T> peak, Acc<T> ty, Acc<T> tx, Acc<T> shift) {
    Acc<T> sum = 0;
    for (int c = threadIdx.x % LANES; c < C; c += LANES)
        sum = plus(sum, exp_2(logit_of(plane_at(u + c, to_right, to_below, peak), ty, tx) - shift));
    return group_sum<LANES>(sum);
}

// ------------------------------------------------------------------------------------------------- the regression

// Corner c of the cell of a pixel: (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil), row first. `step` is the
// pixel's place within the cell; at 0, floor and ceil are one.
__device__ __forceinline__ int rise_y(int c, int step) { return (c & 1) != 0 && step > 0 ? 1 : 0; }
__device__ __forceinline__ int rise_x(int c, int step) { return (c & 2) != 0 && step > 0 ? 1 : 0; }

// The target of an offset along one axis, relative to the pixel, which lies step / k into its cell.
template <typename A> __device__ __forceinline__ A aim(int rise, int step, int k, A reciprocal) {
    return (A)rise - base_position<A>(0, step, k, reciprocal);
}

template <typename A> __device__ __forceinline__ A smooth_l1(A x, A beta) {
    const A size = x < (A)0 ? -x : x;
    return size < beta ? (A)0.5 * x * x / beta : size - (A)0.5 * beta;
}
template <typename A> __device__ __forceinline__ A smooth_l1_slope(A x, A beta) {
    if ((x < (A)0 ? -x : x) < beta) return x / beta;
    return x > (A)0 ? (A)1 : x < (A)0 ? (A)-1 : x;
}
