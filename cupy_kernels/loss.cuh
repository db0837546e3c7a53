#pragma once
// Shared by the loss kernels. Per pixel, L is the cross-entropy of the LaU logits. Its rivals are L', that of the bilinear
// logits (equation 3), or those of the four corners of the pixel's cell (equation 4).
#include "common.cuh"

// The rivals, and for equation 3 the treatment of L = L'.
constexpr int TIE_LOSES = 0, TIE_WINS = 1, REGRESSION = 2;

// The forward kernel's verdict on a pixel: the label is ignored; LaU is good; LaU is not; LaU is not, and corner c is best.
constexpr unsigned char IGNORED = 0, GOOD = 1, PUNISHED = 2, CORNER = 3;

// Replaces channels that do not exist: finite, so that a weight of 0 gives 0, and without weight in a softmax.
constexpr float NO_LOGIT = -1e30f;

__device__ __forceinline__ float exponential(float v) { return __expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float logarithm(float v) { return logf(v); }
__device__ __forceinline__ double logarithm(double v) { return log(v); }
__device__ __forceinline__ float larger(float a, float b) { return fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return fmax(a, b); }

// A sum that the compiler does not contract; see `mad`.
#ifdef LAU_EMULATED
template <typename A> __device__ __forceinline__ A plus(A a, A b) { return a + b; }
#else
__device__ __forceinline__ float plus(float a, float b) { return __fadd_rn(a, b); }
__device__ __forceinline__ double plus(double a, double b) { return __dadd_rn(a, b); }
#endif

// The log-sum-exp of some logits is peak + log(sum).
template <typename A> struct LogSum { A peak, sum; };

template <typename A> __device__ __forceinline__ A log_sum_exp(const LogSum<A>& all) {
    return plus(all.peak, logarithm(all.sum));
}

// The loss of a label that is not a class.
template <typename A> __device__ __forceinline__ A not_a_number() { return (A)__int_as_float(0x7fffffff); }

// Two maxima over groups of LANES lanes; see `group_sum`.
template <int LANES, typename A> __device__ __forceinline__ void group_max(A& a, A& b, int lane) {
    const bool upper = lane & (LANES / 2);
    A kept = larger(upper ? b : a, __shfl_xor_sync(ALL_LANES, upper ? a : b, LANES / 2));
#pragma unroll
    for (int d = LANES / 4; d > 0; d /= 2) kept = larger(kept, __shfl_xor_sync(ALL_LANES, kept, d));
    const A other = __shfl_xor_sync(ALL_LANES, kept, LANES / 2);
    a = upper ? other : kept;
    b = upper ? kept : other;
}

// Two log-sum-exps over all channels from those over each lane's.
template <int LANES, typename A> __device__ __forceinline__ void group_log_sum(LogSum<A>& a, LogSum<A>& b, int lane) {
    A peak_a = a.peak, peak_b = b.peak;
    group_max<LANES>(peak_a, peak_b, lane);
    a = {peak_a, a.sum * exponential(a.peak - peak_a)};
    b = {peak_b, b.sum * exponential(b.peak - peak_b)};
    group_sum<LANES>(a.sum, b.sum, lane);
}

// Corner c of the cell of a pixel: (floor, floor), (ceil, floor), (floor, ceil), (ceil, ceil), row first. `step` is the
// pixel's place within the cell; at 0, floor and ceil are one.
__device__ __forceinline__ int rise_y(int c, int step) { return (c & 1) != 0 && step > 0 ? 1 : 0; }
__device__ __forceinline__ int rise_x(int c, int step) { return (c & 2) != 0 && step > 0 ? 1 : 0; }

// The target of an offset along one axis, relative to the pixel, which lies step / k into its cell.
template <typename A> __device__ __forceinline__ A aim(int rise, int step, int k, A reciprocal) {
    return (A)rise - base_position<A>(step, k, reciprocal);
}

template <typename A> __device__ __forceinline__ A smooth_l1(A x, A beta) {
    const A size = x < (A)0 ? -x : x;
    return size < beta ? (A)0.5 * x * x / beta : size - (A)0.5 * beta;
}
template <typename A> __device__ __forceinline__ A smooth_l1_slope(A x, A beta) {
    if ((x < (A)0 ? -x : x) < beta) return x / beta;
    return x > (A)0 ? (A)1 : x < (A)0 ? (A)-1 : x;
}
