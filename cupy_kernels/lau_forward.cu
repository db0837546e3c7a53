// LaU, forward: V[Y, X] = U(Y / k_h + dy[Y, X], X / k_w + dx[Y, X]), clamped to the border.
//
// offset is (N, 2M, H, W), or null for zero offsets.
#include "common.cuh"

// NCHW. A thread computes PIXELS consecutive pixels of `channels_per_block` channels: the taps are computed once, and the
// store is one instruction. RIGHT is the distance from a tap to its right neighbour: 0 only if w = 1. Grid: pixels,
// channels, maps. C channels per map.
template <typename T, int PIXELS, int RIGHT>
__global__ void __launch_bounds__(256) lau_forward_nchw(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output,
    int maps, int M, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int channels_per_block) {
    using A = Acc<T>;
    const int hw = h * w, HW = hw * kh * kw;
    const int pixel = (blockIdx.x * blockDim.x + threadIdx.x) * PIXELS;
    if (pixel >= HW) return;
    const int first = blockIdx.y * channels_per_block, last = min(C, first + channels_per_block);
    for (int map = blockIdx.z; map < maps; map += gridDim.z) {
        Weights<A> weight[PIXELS];
        unsigned top[PIXELS], bottom[PIXELS];  // of the left taps, in bytes from a base that all threads share
#pragma unroll
        for (int i = 0; i < PIXELS; ++i) {
            const Position<A> p = position_of(offset, map, M, pixel + i, h, w, kh, kw, rkh, rkw);
            const Axis<A> y = locate_pair(p.y, h), x = locate_pair(p.x, w);
            weight[i] = tap_weights(y.t, x.t);
            top[i] = (unsigned)(y.cell * w + x.cell) * sizeof(T);
            bottom[i] = top[i] + (unsigned)(y.far * w) * sizeof(T);
        }
        const size_t plane = (size_t)map * C + first;
        const char* u = reinterpret_cast<const char*>(input + plane * hw);
        T* v = output + plane * HW;
#pragma unroll 2
        for (int c = first; c < last; ++c, u += hw * sizeof(T), v += HW) {
            Vec<T, PIXELS> out;
#pragma unroll
            for (int i = 0; i < PIXELS; ++i) {
                const T* above = reinterpret_cast<const T*>(u + top[i]);
                const T* below = reinterpret_cast<const T*>(u + bottom[i]);
                out.v[i] = narrow<T>(blend<A>(weight[i], widen(above[0]), widen(above[RIGHT]), widen(below[0]), widen(below[RIGHT])));
            }
            stream<PIXELS>(v + pixel, out);
        }
    }
}

// NHWC, M = 1. A group of LANES lanes computes LANES pixels: each lane computes the taps of one, then all lanes process one
// pixel after another together, VEC channels per lane and step.
template <typename T, int VEC, int LANES>
__global__ void __launch_bounds__(256) lau_forward_nhwc(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, T* __restrict__ output,
    int images, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw) {
    using A = Acc<T>;
    const int hw = h * w, HW = hw * kh * kw, lane = threadIdx.x % LANES;
    const int begin = (blockIdx.x * blockDim.x + threadIdx.x) / LANES * LANES;
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        Axis<A> y = {0, 0, (A)0}, x = {0, 0, (A)0};
        if (begin + lane < HW) {
            const Position<A> p = position_of(offset, image, 1, begin + lane, h, w, kh, kw, rkh, rkw);
            y = locate_pair(p.y, h);
            x = locate_pair(p.x, w);
        }
        const int near = (y.cell * w + x.cell) * C, right = x.far * C, down = y.far * w * C;
        const T* u = input + (size_t)image * hw * C;
        T* v = output + ((size_t)image * HW + begin) * C;
        for (int i = 0; i < LANES; ++i) {
            const Weights<A> weight = tap_weights(__shfl_sync(ALL_LANES, y.t, i, LANES), __shfl_sync(ALL_LANES, x.t, i, LANES));
            const T* top = u + __shfl_sync(ALL_LANES, near, i, LANES);
            const T* bottom = top + __shfl_sync(ALL_LANES, down, i, LANES);
            const int step = __shfl_sync(ALL_LANES, right, i, LANES);
            if (begin + i >= HW) continue;  // other groups of the warp may have pixels left, and need this one in their shuffles
            for (int c = lane * VEC; c < C; c += LANES * VEC) {
                const Vec<T, VEC> v00 = load<VEC>(top + c), v01 = load<VEC>(top + step + c);
                const Vec<T, VEC> v10 = load<VEC>(bottom + c), v11 = load<VEC>(bottom + step + c);
                Vec<T, VEC> out;
#pragma unroll
                for (int j = 0; j < VEC; ++j)
                    out.v[j] = narrow<T>(blend<A>(weight, widen(v00.v[j]), widen(v01.v[j]), widen(v10.v[j]), widen(v11.v[j])));
                stream<VEC>(v + (size_t)i * C + c, out);
            }
        }
    }
}
