#pragma once
// Shared by all kernels: storage types, the positions of samples, and warp-wide operations.
//
// Compiled by NVRTC without any header of the CUDA toolkit, and by g++ through tests/emulator/cuda_on_cpu.h, which
// defines LAU_EMULATED.

// ---------------------------------------------------------------------------------------------------- storage types

struct bfloat16 { unsigned short bits; };
struct float16 { unsigned short bits; };

// All arithmetic is in float, except in double for double.
template <typename T> struct Accumulator { using type = float; };
template <> struct Accumulator<double> { using type = double; };
template <typename T> using Acc = typename Accumulator<T>::type;

template <typename T> constexpr bool is_bfloat16 = false;
template <> constexpr bool is_bfloat16<bfloat16> = true;

__device__ __forceinline__ float widen(float v) { return v; }
__device__ __forceinline__ double widen(double v) { return v; }
__device__ __forceinline__ float widen(bfloat16 v) { return __uint_as_float((unsigned)v.bits << 16); }
__device__ __forceinline__ float widen(float16 v) {
#ifdef LAU_EMULATED
    return emulated_half_to_float(v.bits);
#else
    float f;
    asm("cvt.f32.f16 %0, %1;" : "=f"(f) : "h"(v.bits));
    return f;
#endif
}

// Rounds to nearest, ties to even, as torch does.
template <typename T> __device__ __forceinline__ T narrow(Acc<T> v) { return (T)v; }
// Two bfloat16 in a word, `low` in the lower half. A NaN becomes 0x7fff, as torch has it on a GPU.
__device__ __forceinline__ unsigned narrow_pair(float low, float high) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
    unsigned pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high), "f"(low));
    return pair;
#else
    const auto rounded = [](float v) {
        const unsigned u = __float_as_uint(v);
        if ((u & 0x7fffffffu) > 0x7f800000u) return 0x7fffu;  // rounding could turn it into an infinity
        return (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
    };
    return rounded(low) | rounded(high) << 16;
#endif
}
template <> __device__ __forceinline__ bfloat16 narrow<bfloat16>(float v) {
    return bfloat16{(unsigned short)narrow_pair(v, 0.f)};
}
template <> __device__ __forceinline__ float16 narrow<float16>(float v) {
    float16 out;
#ifdef LAU_EMULATED
    out.bits = emulated_float_to_half(v);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(out.bits) : "f"(v));
#endif
    return out;
}

#ifndef LAU_CHECK_ALIGNED  // the emulator checks; a GPU would abort the process
#define LAU_CHECK_ALIGNED(p, bytes)
#endif

// An address that the compiler keeps as it is in registers, rather than computing it anew wherever it is used.
template <typename T> __device__ __forceinline__ T* kept(T* p) {
#ifndef LAU_EMULATED
    asm("" : "+l"(p));
#endif
    return p;
}

// N values that are loaded and stored in one instruction. The address must be a multiple of the size.
template <typename T, int N> struct alignas(sizeof(T) * N) Vec { T v[N]; };

// The built-in type of BYTES bytes: the compiler may split the access to a structure into several.
template <int BYTES> struct Word;
template <> struct Word<2> { using type = unsigned short; };
template <> struct Word<4> { using type = unsigned; };
template <> struct Word<8> { using type = uint2; };
template <> struct Word<16> { using type = uint4; };

template <int N, typename T> union Bits {
    Vec<T, N> value;
    typename Word<sizeof(T) * N>::type word;
};

template <int N, typename T> __device__ __forceinline__ Vec<T, N> load(const T* p) {
    LAU_CHECK_ALIGNED(p, sizeof(T) * N);
    Bits<N, T> bits;
    bits.word = *reinterpret_cast<const typename Word<sizeof(T) * N>::type*>(p);
    return bits.value;
}
// From global memory that no thread writes meanwhile.
template <int N, typename T> __device__ __forceinline__ Vec<T, N> fetch(const T* p) {
    LAU_CHECK_ALIGNED(p, sizeof(T) * N);
    Bits<N, T> bits;
    bits.word = __ldg(reinterpret_cast<const typename Word<sizeof(T) * N>::type*>(p));
    return bits.value;
}
// The same if `exists`, else zeros.
template <int N, typename T> __device__ __forceinline__ Vec<T, N> fetch_if(bool exists, const T* p) {
    Bits<N, T> bits;
    bits.word = typename Word<sizeof(T) * N>::type();
    if (exists) {
        LAU_CHECK_ALIGNED(p, sizeof(T) * N);
        bits.word = __ldg(reinterpret_cast<const typename Word<sizeof(T) * N>::type*>(p));
    }
    return bits.value;
}
template <int N, typename T> __device__ __forceinline__ void store(T* p, const Vec<T, N>& v) {
    LAU_CHECK_ALIGNED(p, sizeof(T) * N);
    Bits<N, T> bits = {v};
    __stcg(reinterpret_cast<typename Word<sizeof(T) * N>::type*>(p), bits.word);  // an assignment may be split
}
// To shared memory.
template <int N, typename T> __device__ __forceinline__ void put(T* p, const Vec<T, N>& v) {
    LAU_CHECK_ALIGNED(p, sizeof(T) * N);
    Bits<N, T> bits = {v};
    *reinterpret_cast<typename Word<sizeof(T) * N>::type*>(p) = bits.word;
}
// For values that this kernel does not read again, so that the cache keeps its input, which it reads often.
template <int N, typename T> __device__ __forceinline__ void stream(T* p, const Vec<T, N>& v) {
    LAU_CHECK_ALIGNED(p, sizeof(T) * N);
    Bits<N, T> bits = {v};
    __stcs(reinterpret_cast<typename Word<sizeof(T) * N>::type*>(p), bits.word);
}

// An integer as a type.
template <int N> struct Number { static constexpr int value = N; };

// N values in the type of the arithmetic.
template <typename A, int N> struct Wide { A v[N]; };

// bfloat16 by words of two: one instruction widens one of them, or narrows both.
template <int N> union Pairs {
    Vec<bfloat16, N> value;
    unsigned word[N / 2];
};
template <typename T, int N> __device__ __forceinline__ Wide<Acc<T>, N> widen_all(const Vec<T, N>& v) {
    Wide<Acc<T>, N> wide;
    if constexpr (is_bfloat16<T> && N % 2 == 0) {
        const Pairs<N> pairs = {v};
#pragma unroll
        for (int j = 0; j < N; ++j)
            wide.v[j] = __uint_as_float(j % 2 ? pairs.word[j / 2] & 0xffff0000u : pairs.word[j / 2] << 16);
    } else {
#pragma unroll
        for (int j = 0; j < N; ++j) wide.v[j] = widen(v.v[j]);
    }
    return wide;
}
template <typename T, int N> __device__ __forceinline__ Vec<T, N> narrow_all(const Wide<Acc<T>, N>& wide) {
    if constexpr (is_bfloat16<T> && N % 2 == 0) {
        Pairs<N> pairs;
#pragma unroll
        for (int j = 0; j < N; j += 2) pairs.word[j / 2] = narrow_pair(wide.v[j], wide.v[j + 1]);
        return pairs.value;
    } else {
        Vec<T, N> v;
#pragma unroll
        for (int j = 0; j < N; ++j) v.v[j] = narrow<T>(wide.v[j]);
        return v;
    }
}

// The compiler may contract a * b + c in one place and not in another; where two branches must agree to the last bit, the
// contraction is explicit.
__device__ __forceinline__ float mad(float a, float b, float c) { return fmaf(a, b, c); }
__device__ __forceinline__ double mad(double a, double b, double c) { return fma(a, b, c); }

// -------------------------------------------------------------------------------------------- positions of samples

// A number d by which numbers 0 <= n < 2^31 are divided without a division: 2^(31 + shift) / d, rounded up, in the lower
// half, and in the upper half the smallest `shift` with 2^shift >= d.
using Divisor = unsigned long long;

__device__ __forceinline__ int quotient(int n, Divisor d) {
    return (int)(__umulhi((unsigned)n * 2u, (unsigned)d) >> (int)(d >> 32));
}

// The position of output index Y = cell * k + step along its axis, which is cell + step / k.
// `reciprocal` is 1 / k, rounded. One correction makes the product step * reciprocal equal to the rounded quotient.
template <typename A> __device__ __forceinline__ A base_position(int cell, int step, int k, A reciprocal) {
    const A steps = (A)step, quotient = steps * reciprocal;
    return (A)cell + mad(mad(-quotient, (A)k, steps), reciprocal, quotient);
}
template <typename A> __device__ __forceinline__ A base_position(int index, int k, A reciprocal) {
    const int cell = index / k;
    return base_position<A>(cell, index - cell * k, k, reciprocal);
}

// A map is what shares one offset: an image (M = 1), or one channel of an image (M = C). Map m of image n has its row
// offsets in plane 2 M n + m, and its column offsets M planes later.
__device__ __forceinline__ size_t offset_plane(int map, int M, int HW) { return (size_t)(map / M * 2 * M + map % M) * HW; }

// The position at which a pixel of a map samples the input. A null `offset` stands for zeros.
template <typename A> struct Position { A y, x; };

template <typename A> __device__ __forceinline__ Position<A> position_of(
    const A* __restrict__ offset, int map, int M, int pixel, int h, int w, int kh, int kw, A rkh, A rkw) {
    const int W = w * kw, HW = h * kh * W, Y = pixel / W;
    Position<A> p = {base_position<A>(Y, kh, rkh), base_position<A>(pixel - Y * W, kw, rkw)};
    if (offset != nullptr) {
        const A* rows = offset + offset_plane(map, M, HW) + pixel;
        p.y += rows[0];
        p.x += rows[(size_t)M * HW];
    }
    return p;
}

// One axis of one sample: it reads `cell` with weight 1 - t and `cell + far` with weight t. A NaN position reads cell 0
// with t = NaN: the value is NaN, and no index is out of bounds.
template <typename A> struct Axis { int cell, far; A t; };

template <typename A> __device__ __forceinline__ Axis<A> locate(A position, int n) {
    const A last = (A)(n - 1);
    const A inside = position > (A)0 ? (position < last ? position : last) : (A)0;  // NaN: 0
    Axis<A> axis;
    axis.cell = (int)inside;
    axis.far = axis.cell < n - 1 ? 1 : 0;
    axis.t = position == position ? inside - (A)axis.cell : position;
    return axis;
}

// The same sample, read from two neighbours that exist if n > 1: at n - 1 from the cell before it, with t = 1. Kernels that
// only need the value compute one address for both.
template <typename A> __device__ __forceinline__ Axis<A> locate_pair(A position, int n) {
    Axis<A> axis = locate(position, n);
    if (axis.far == 0 && n > 1) axis = {n - 2, 1, axis.t + (A)1};
    return axis;
}

// What a scale factor divides by: the width of the output, and the factors.
struct Scale { Divisor W, kh, kw; };

// `position_of` for M = 1, without divisions.
template <typename A> __device__ __forceinline__ Position<A> position_of(
    const A* __restrict__ offset, int image, int pixel, int HW, int W, int kh, int kw, A rkh, A rkw, const Scale& scale) {
    const int Y = quotient(pixel, scale.W), X = pixel - Y * W, i = quotient(Y, scale.kh), j = quotient(X, scale.kw);
    Position<A> p = {base_position<A>(i, Y - i * kh, kh, rkh), base_position<A>(j, X - j * kw, kw, rkw)};
    if (offset != nullptr) {
        const A* rows = offset + (size_t)image * 2 * HW + pixel;
        p.y += rows[0];
        p.x += rows[HW];
    }
    return p;
}

// Whether the derivative with respect to the position exists: not outside of [0, n - 1], and not to the right at n - 1.
template <typename A> __device__ __forceinline__ bool has_slope(A position, int n) {
    return position >= (A)0 && position < (A)(n - 1);
}
template <typename A> __device__ __forceinline__ bool on_integer(A position, int n, A t) {
    return position >= (A)0 && position <= (A)(n - 1) && t == (A)0;
}

// The weights of the taps (row, column), (row, column + 1), (row + 1, column), (row + 1, column + 1).
template <typename A> struct Weights { A w00, w01, w10, w11; };

template <typename A> __device__ __forceinline__ Weights<A> tap_weights(A ty, A tx) {
    const A sy = (A)1 - ty, sx = (A)1 - tx;
    return {sy * sx, sy * tx, ty * sx, ty * tx};
}

// The only formula for a sampled value, in all kernels: equal offsets give equal bits.
template <typename A> __device__ __forceinline__ A blend(const Weights<A>& w, A v00, A v01, A v10, A v11) {
    return mad(w.w11, v11, mad(w.w10, v10, mad(w.w01, v01, w.w00 * v00)));
}

// ------------------------------------------------------------------------------------------------ warp-wide operations

constexpr unsigned ALL_LANES = 0xffffffffu;

// The sum over groups of LANES neighbouring lanes, in each lane of the group.
template <int LANES, typename A> __device__ __forceinline__ A group_sum(A v) {
#pragma unroll
    for (int d = LANES / 2; d > 0; d /= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}

// The sum over the lanes at the same place in their groups of LANES.
template <int LANES, typename A> __device__ __forceinline__ A across_groups(A v) {
#pragma unroll
    for (int d = LANES; d < 32; d *= 2) v += __shfl_xor_sync(ALL_LANES, v, d);
    return v;
}

// Two group sums for little more than the cost of one: after the first exchange, each half of the lanes carries one.
template <int LANES, typename A> __device__ __forceinline__ void group_sum(A& a, A& b, int lane) {
    const bool upper = lane & (LANES / 2);
    A kept = (upper ? b : a) + __shfl_xor_sync(ALL_LANES, upper ? a : b, LANES / 2);
#pragma unroll
    for (int d = LANES / 4; d > 0; d /= 2) kept += __shfl_xor_sync(ALL_LANES, kept, d);
    const A other = __shfl_xor_sync(ALL_LANES, kept, LANES / 2);
    a = upper ? other : kept;
    b = upper ? kept : other;
}

// Shared memory whose size is set by the launch.
#ifndef LAU_DYNAMIC_SHARED
#define LAU_DYNAMIC_SHARED(T, name)                          \
    extern __shared__ __align__(16) unsigned char name##_bytes[]; \
    T* const name = reinterpret_cast<T*>(name##_bytes)
#endif

// Adds a vector to memory that other threads add to as well. The sum depends on their order in its last bits.
template <int N> __device__ __forceinline__ void add_to(float* p, const Vec<float, N>& v) {
    LAU_CHECK_ALIGNED(p, 4 * N);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if constexpr (N == 4) {
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                     :: "l"(p), "f"(v.v[0]), "f"(v.v[1]), "f"(v.v[2]), "f"(v.v[3]) : "memory");
        return;
    } else if constexpr (N == 2) {
        asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" :: "l"(p), "f"(v.v[0]), "f"(v.v[1]) : "memory");
        return;
    }
#endif
#pragma unroll
    for (int j = 0; j < N; ++j) atomicAdd(p + j, v.v[j]);
}
template <int N> __device__ __forceinline__ void add_to(double* p, const Vec<double, N>& v) {
#pragma unroll
    for (int j = 0; j < N; ++j) atomicAdd(p + j, v.v[j]);
}
