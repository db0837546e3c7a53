// The location-aware losses, backward, as a gather over samples listed by cell (lau_backward.cu): the gradient of a sampled
// logit is scale * weight * (softmax - one-hot), and the softmax comes from the log-sum-exp that the forward kernel stored.
#include "cells.cuh"
#include "loss.cuh"

// What a sample's gradient needs besides its logits. The weight is 0 for an ignored label, and where no sample exists.
template <typename A> struct Labelled { A lse, weight; int label; };

template <typename A> __device__ __forceinline__ Labelled<A> labelled(
    const A* __restrict__ lse, const unsigned char* __restrict__ choice, const long long* __restrict__ target,
    size_t at, int C, A scale, A punished) {
    const unsigned char verdict = choice[at];
    if (verdict == IGNORED) return {-(A)NO_LOGIT, (A)0, -1};
    const long long label = target[at];
    return {lse[at], verdict == GOOD ? scale : scale * punished, label >= 0 && label < C ? (int)label : -1};
}

// d (regression term) / d offset at a pixel, both coordinates.
template <typename A> struct Pull { A y, x; };

template <typename A> __device__ __forceinline__ Pull<A> pull_of(
    int verdict, int pixel, A dy, A dx, int W, int kh, int kw, A rkh, A rkw, A weight, A beta) {
    if (verdict < CORNER) return {(A)0, (A)0};
    const int Y = pixel / W, X = pixel - Y * W, sy = Y % kh, sx = X % kw, corner = verdict - CORNER;
    const A aim_y = aim(rise_y(corner, sy), sy, kh, rkh), aim_x = aim(rise_x(corner, sx), sx, kw, rkw);
    return {weight * smooth_l1_slope(dy - aim_y, beta), weight * smooth_l1_slope(dx - aim_x, beta)};
}

template <int N> __device__ __forceinline__ void add(float* p, const Vec<float, N>& v) {
    LAU_CHECK_ALIGNED(p, 4 * N);
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    if (N == 4) {
        asm volatile("red.global.add.v4.f32 [%0], {%1, %2, %3, %4};"
                     :: "l"(p), "f"(v.v[0]), "f"(v.v[1 % N]), "f"(v.v[2 % N]), "f"(v.v[3 % N]) : "memory");
        return;
    }
    if (N == 2) {
        asm volatile("red.global.add.v2.f32 [%0], {%1, %2};" :: "l"(p), "f"(v.v[0]), "f"(v.v[1 % N]) : "memory");
        return;
    }
#endif
#pragma unroll
    for (int j = 0; j < N; ++j) atomicAdd(p + j, v.v[j]);
}
template <int N> __device__ __forceinline__ void add(double* p, const Vec<double, N>& v) {
#pragma unroll
    for (int j = 0; j < N; ++j) atomicAdd(p + j, v.v[j]);
}

// NHWC, M = 1. One warp per chunk of at most 32 samples, as in gather_nhwc of lau_backward.cu. The gradients of a cell's
// corners are written to `parts` (one writer each, for `combine`) or added to `grad_input`; both may be null.
template <typename T, int VEC, int LANES, int VECTORS>
__global__ void __launch_bounds__(256, 2) loss_gather_nhwc(
    const Acc<T>* __restrict__ scale, const T* __restrict__ input, const Acc<T>* __restrict__ offset,
    const long long* __restrict__ target, const Acc<T>* __restrict__ lse, const unsigned char* __restrict__ choice,
    const Chunk* __restrict__ chunks, const int* __restrict__ totals, const Entry<Acc<T>>* __restrict__ entries,
    Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_input, Acc<T>* __restrict__ grad_offset,
    int first_map, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw,
    Acc<T> punished, Acc<T> regression_weight, Acc<T> beta, int code) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, STEP = LANES * VEC;
    const int index = (blockIdx.x * blockDim.x + threadIdx.x) / 32;
    if (index >= totals[1]) return;
    const int lane = threadIdx.x % LANES, group = threadIdx.x % 32 / LANES;
    const int hw = h * w, W = w * kw, HW = hw * kh * kw;
    const Chunk chunk = chunks[index];
    const int map = chunk.cell / hw, cell = chunk.cell - map * hw, y = cell / w, x = cell - y * w;
    const int to_right = x < w - 1 ? C : 0, to_below = y < h - 1 ? w * C : 0;
    const size_t image = first_map + map, corner = (image * hw + cell) * C;
    const T* u = input + corner;

    // The sample of this lane: consecutive samples go to different groups.
    const int lane_sample = lane * GROUPS + group;
    const bool has_sample = lane_sample < chunk.length;
    Entry<A> entry = {(A)0, (A)0, 0, 0};
    Labelled<A> known = {-(A)NO_LOGIT, (A)0, -1};
    if (has_sample) {
        entry = entries[chunk.begin + lane_sample];
        known = labelled(lse, choice, target, image * HW + entry.pixel, C, scale[0], punished);
    }
    A grad_y = 0, grad_x = 0, grad_value = 0;

    for (int block = 0; block < C; block += STEP * VECTORS) {
        const int c0 = block + lane * VEC;
        A near[VECTORS][VEC];
        Slopes<A> slopes[VECTORS][VEC];
        Vec<A, VEC> s00[VECTORS], s01[VECTORS], s10[VECTORS], s11[VECTORS];
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
            const int c = c0 + q * STEP;
            Vec<T, VEC> a = {}, b = {}, d = {}, e = {};
            if (c < C) {
                a = load<VEC>(u + c);
                b = load<VEC>(u + to_right + c);
                d = load<VEC>(u + to_below + c);
                e = load<VEC>(u + to_below + to_right + c);
            }
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                near[q][j] = c < C ? widen(a.v[j]) : (A)NO_LOGIT;
                slopes[q][j] = slopes_of<A>(widen(a.v[j]), widen(b.v[j]), widen(d.v[j]), widen(e.v[j]));
                s00[q].v[j] = s01[q].v[j] = s10[q].v[j] = s11[q].v[j] = (A)0;
            }
        }
        for (int i = 0; i * GROUPS < chunk.length; ++i) {
            const A ty = __shfl_sync(ALL_LANES, entry.ty, i, LANES), tx = __shfl_sync(ALL_LANES, entry.tx, i, LANES);
            const A all = __shfl_sync(ALL_LANES, known.lse, i, LANES), s = __shfl_sync(ALL_LANES, known.weight, i, LANES);
            const int label = __shfl_sync(ALL_LANES, known.label, i, LANES) - c0;
            const Weights<A> weight = tap_weights(ty, tx);
            A down = 0, right = 0, twist = 0, value = 0;
#pragma unroll
            for (int q = 0; q < VECTORS; ++q) {
#pragma unroll
                for (int j = 0; j < VEC; ++j) {
                    const Slopes<A>& slope = slopes[q][j];
                    const A v = mad(tx, mad(ty, slope.twist, slope.right), mad(ty, slope.down, near[q][j]));
                    const A p = s * exponential(v - all), g = label == q * STEP + j ? p - s : p;
                    s00[q].v[j] = mad(weight.w00, g, s00[q].v[j]);
                    s01[q].v[j] = mad(weight.w01, g, s01[q].v[j]);
                    s10[q].v[j] = mad(weight.w10, g, s10[q].v[j]);
                    s11[q].v[j] = mad(weight.w11, g, s11[q].v[j]);
                    down = mad(slope.down, g, down);
                    right = mad(slope.right, g, right);
                    twist = mad(slope.twist, g, twist);
                    if (code) value = mad(v, g, value);
                }
            }
            A along_y = mad(tx, twist, down), along_x = mad(ty, twist, right);
            group_sum<LANES>(along_y, along_x, lane);
            if (code) value = group_sum<LANES>(value);
            if (lane == i) {
                grad_y += along_y;
                grad_x += along_x;
                grad_value += value;
            }
        }
        if (parts == nullptr && grad_input == nullptr) continue;
#pragma unroll
        for (int q = 0; q < VECTORS; ++q)  // by all lanes together; only some lanes store afterwards
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                s00[q].v[j] = across_groups<LANES>(s00[q].v[j]);
                s01[q].v[j] = across_groups<LANES>(s01[q].v[j]);
                s10[q].v[j] = across_groups<LANES>(s10[q].v[j]);
                s11[q].v[j] = across_groups<LANES>(s11[q].v[j]);
            }
        if (group > 0) continue;
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
            const int c = c0 + q * STEP;
            if (c >= C) continue;
            if (parts != nullptr) {
                A* out = parts + (size_t)index * 4 * C + c;
                store<VEC>(out, s00[q]);
                store<VEC>(out + C, s01[q]);
                store<VEC>(out + 2 * C, s10[q]);
                store<VEC>(out + 3 * C, s11[q]);
            } else {  // at the last row and column the far corners have weight 0
                A* out = grad_input + corner + c;
                add<VEC>(out, s00[q]);
                if (to_right) add<VEC>(out + to_right, s01[q]);
                if (to_below) add<VEC>(out + to_below, s10[q]);
                if (to_right && to_below) add<VEC>(out + to_below + to_right, s11[q]);
            }
        }
    }
    if (grad_offset == nullptr || !has_sample) return;
    const size_t plane = image * 2 * HW + entry.pixel;
    const A dy = offset[plane], dx = offset[plane + HW];
    A out_y = entry.slopes & SLOPE_Y ? grad_y : (A)0, out_x = entry.slopes & SLOPE_X ? grad_x : (A)0;
    if (code) {
        const int Y = entry.pixel / W, X = entry.pixel - Y * W;
        if (on_integer(base_position<A>(Y, kh, rkh) + dy, h, entry.ty)) out_y = -grad_value;
        if (on_integer(base_position<A>(X, kw, rkw) + dx, w, entry.tx)) out_x = -grad_value;
    }
    const Pull<A> pull = pull_of<A>(
        choice[image * HW + entry.pixel], entry.pixel, dy, dx, W, kh, kw, rkh, rkw, scale[0] * regression_weight * (A)0.5, beta);
    grad_offset[plane] = out_y + pull.y;
    grad_offset[plane + HW] = out_x + pull.x;
}

// NCHW, one offset per channel (M = C). A map is a channel of an image; one thread per chunk.
// `parts` is [corner][max_chunks].
template <typename T>
__global__ void __launch_bounds__(128, 4) loss_gather_channels(
    const Acc<T>* __restrict__ scale, const T* __restrict__ input, const Acc<T>* __restrict__ offset,
    const long long* __restrict__ target, const Acc<T>* __restrict__ lse, const unsigned char* __restrict__ choice,
    const Chunk* __restrict__ chunks, const int* __restrict__ totals, const Entry<Acc<T>>* __restrict__ entries,
    Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_offset,
    int first_map, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, Acc<T> punished, int code, int max_chunks) {
    using A = Acc<T>;
    const int index = blockIdx.x * blockDim.x + threadIdx.x;
    if (index >= totals[1]) return;
    const Chunk chunk = chunks[index];
    const int hw = h * w, W = w * kw, HW = hw * kh * kw;
    const int map = first_map + chunk.cell / hw, cell = chunk.cell % hw, y = cell / w, x = cell - y * w;
    const int image = map / C, c = map - image * C;
    const T* u = input + (size_t)map * hw + cell;
    const int to_right = x < w - 1 ? 1 : 0, to_below = y < h - 1 ? w : 0;
    const A near = widen(u[0]);
    const Slopes<A> slope = slopes_of<A>(near, widen(u[to_right]), widen(u[to_below]), widen(u[to_below + to_right]));
    A s00 = 0, s01 = 0, s10 = 0, s11 = 0;
    for (int i = 0; i < chunk.length; ++i) {
        const Entry<A> entry = entries[chunk.begin + i];
        const Labelled<A> known = labelled(lse, choice, target, (size_t)image * HW + entry.pixel, C, scale[0], punished);
        const A along_y = mad(entry.tx, slope.twist, slope.down), along_x = mad(entry.ty, slope.twist, slope.right);
        const A v = mad(entry.tx, along_x, mad(entry.ty, slope.down, near));
        const A p = known.weight * exponential(v - known.lse), g = c == known.label ? p - known.weight : p;
        const Weights<A> weight = tap_weights(entry.ty, entry.tx);
        s00 = mad(weight.w00, g, s00);
        s01 = mad(weight.w01, g, s01);
        s10 = mad(weight.w10, g, s10);
        s11 = mad(weight.w11, g, s11);
        if (grad_offset == nullptr) continue;
        const size_t plane = ((size_t)image * 2 * C + c) * HW + entry.pixel, columns = plane + (size_t)C * HW;
        A out_y = entry.slopes & SLOPE_Y ? g * along_y : (A)0, out_x = entry.slopes & SLOPE_X ? g * along_x : (A)0;
        if (code) {
            const int Y = entry.pixel / W, X = entry.pixel - Y * W;
            if (on_integer(base_position<A>(Y, kh, rkh) + offset[plane], h, entry.ty)) out_y = -g * v;
            if (on_integer(base_position<A>(X, kw, rkw) + offset[columns], w, entry.tx)) out_x = -g * v;
        }
        grad_offset[plane] = out_y;
        grad_offset[columns] = out_x;
    }
    if (parts == nullptr) return;
    parts[index] = s00;
    parts[(size_t)max_chunks + index] = s01;
    parts[(size_t)max_chunks * 2 + index] = s10;
    parts[(size_t)max_chunks * 3 + index] = s11;
}
