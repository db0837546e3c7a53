// The location-aware losses, forward: the log-sum-exp of each pixel's logits, then, with the logit of its label, its loss.
#include "loss.cuh"

// A lane's channels of a pixel: VECTORS vectors of VEC channels, LANES vectors apart, starting at `channel`.
template <typename A, int VEC, int VECTORS> struct Channels { A v[VECTORS][VEC]; };

// Channels beyond the last are read as the first; `add_sample` adds NO_LOGIT to them.
template <typename T, int VEC, int LANES, int VECTORS>
__device__ __forceinline__ Channels<Acc<T>, VEC, VECTORS> load_channels(const T* __restrict__ pixel, int channel, int C) {
    Channels<Acc<T>, VEC, VECTORS> out;
#pragma unroll
    for (int q = 0; q < VECTORS; ++q) {
        const int c = channel + q * LANES * VEC;
        const Vec<T, VEC> v = load<VEC>(pixel + (c < C ? c : 0));
#pragma unroll
        for (int j = 0; j < VEC; ++j) out.v[q][j] = widen(v.v[j]);
    }
    return out;
}

// The four corners of a cell, (row, column) 00, 01, 10, 11.
template <typename A, int VEC, int VECTORS> struct Corners { Channels<A, VEC, VECTORS> at[4]; };

template <typename T, int VEC, int LANES, int VECTORS>
__device__ __forceinline__ Corners<Acc<T>, VEC, VECTORS> load_corners(
    const T* __restrict__ node, int right, int down, int channel, int C) {
    return {load_channels<T, VEC, LANES, VECTORS>(node, channel, C), load_channels<T, VEC, LANES, VECTORS>(node + right, channel, C),
            load_channels<T, VEC, LANES, VECTORS>(node + down, channel, C),
            load_channels<T, VEC, LANES, VECTORS>(node + down + right, channel, C)};
}

// Adds logits to a lane's log-sum-exp.
template <typename A, int VEC, int VECTORS>
__device__ __forceinline__ void add_logits(LogSum<A>& all, const Channels<A, VEC, VECTORS>& logit) {
    A peak = all.peak;
#pragma unroll
    for (int q = 0; q < VECTORS; ++q)
#pragma unroll
        for (int j = 0; j < VEC; ++j) peak = larger(peak, logit.v[q][j]);
    A sum = all.sum * exponential(all.peak - peak);
#pragma unroll
    for (int q = 0; q < VECTORS; ++q)
#pragma unroll
        for (int j = 0; j < VEC; ++j) sum = plus(sum, exponential(logit.v[q][j] - peak));
    all = {peak, sum};
}

// The same for a sample, whose logits it computes as `blend` does.
template <int LANES, typename A, int VEC, int VECTORS>
__device__ __forceinline__ void add_sample(
    LogSum<A>& all, const Weights<A>& weight, const Corners<A, VEC, VECTORS>& cell, int channel, int C) {
    Channels<A, VEC, VECTORS> logit;
#pragma unroll
    for (int q = 0; q < VECTORS; ++q) {
        const A nothing = channel + q * LANES * VEC < C ? (A)0 : (A)NO_LOGIT;
#pragma unroll
        for (int j = 0; j < VEC; ++j)
            logit.v[q][j] = mad(weight.w11, cell.at[3].v[q][j], mad(weight.w10, cell.at[2].v[q][j],
                            mad(weight.w01, cell.at[1].v[q][j], mad(weight.w00, cell.at[0].v[q][j], nothing))));
    }
    add_logits(all, logit);
}

// NHWC, M = 1. A group of LANES lanes processes the k_h k_w pixels of one cell; its lanes share the channels of a pixel, and
// each computes the taps of one pixel. `plain` receives the log-sum-exps of the bilinear logits, `nodes` those of the input
// itself; both may be null. Bilinear upsampling reads the same corners for the whole cell; they stay in registers.
template <typename T, int VEC, int LANES, int VECTORS>
__global__ void __launch_bounds__(256, 2) log_sums_nhwc(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset,
    Acc<T>* __restrict__ lse, Acc<T>* __restrict__ plain, Acc<T>* __restrict__ nodes,
    int images, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw) {
    using A = Acc<T>;
    constexpr int BLOCK = LANES * VEC * VECTORS;
    const int hw = h * w, W = w * kw, HW = hw * kh * kw, lane = threadIdx.x % LANES, channel = lane * VEC;
    const int index = (int)(blockIdx.x * blockDim.x + threadIdx.x) / LANES;
    const bool active = index < images * hw;
    const int cell = active ? index : images * hw - 1;  // a surplus group repeats the last cell and writes nothing
    const int image = cell / hw, node = cell - image * hw, i = node / w, j = node - i * w;
    const int cell_right = j < w - 1 ? C : 0, cell_down = i < h - 1 ? w * C : 0;
    const T* u = input + (size_t)image * hw * C;
    const bool at_once = C <= BLOCK;

    const T* cell_node = u + (size_t)node * C;
    Corners<A, VEC, VECTORS> cell_corners;
    if (plain != nullptr && at_once) cell_corners = load_corners<T, VEC, LANES, VECTORS>(cell_node, cell_right, cell_down, channel, C);
    if (nodes != nullptr) {
        LogSum<A> sum = {(A)NO_LOGIT, (A)0}, same = sum;
        for (int c = channel; c - channel < C; c += BLOCK)
            add_sample<LANES>(sum, {(A)1, (A)0, (A)0, (A)0}, load_corners<T, VEC, LANES, VECTORS>(cell_node, 0, 0, c, C), c, C);
        group_log_sum<LANES>(sum, same, lane);
        if (active && lane == 0) nodes[cell] = log_sum_exp(sum);
    }

    for (int first = 0; first < kh * kw; first += LANES) {
        // The pixel of this lane; a surplus lane repeats the last.
        const int step = min(first + lane, kh * kw - 1), sy = step / kw, Y = i * kh + sy, X = j * kw + step - sy * kw;
        const A py = base_position<A>(Y, kh, rkh), px = base_position<A>(X, kw, rkw);
        const A* rows = offset + (size_t)image * 2 * HW + Y * W + X;
        const Axis<A> y = locate(py + rows[0], h), x = locate(px + rows[HW], w);
        const A plain_ty = locate(py, h).t, plain_tx = locate(px, w).t;
        const int packed = (y.cell * w + x.cell) * 4 + y.far * 2 + x.far;
        A pixel_lse = 0, pixel_plain = 0;
        for (int s = 0; s < LANES && first + s < kh * kw; ++s) {
            const int where = __shfl_sync(ALL_LANES, packed, s, LANES);
            const A ty = __shfl_sync(ALL_LANES, y.t, s, LANES), tx = __shfl_sync(ALL_LANES, x.t, s, LANES);
            const A ty0 = __shfl_sync(ALL_LANES, plain_ty, s, LANES), tx0 = __shfl_sync(ALL_LANES, plain_tx, s, LANES);
            LogSum<A> sum = {(A)NO_LOGIT, (A)0}, sum0 = sum;
            const T* corner = u + (size_t)(where / 4) * C;
            const int right = where & 1 ? C : 0, down = where & 2 ? w * C : 0;
            for (int c = channel; c - channel < C; c += BLOCK) {
                add_sample<LANES>(sum, tap_weights(ty, tx), load_corners<T, VEC, LANES, VECTORS>(corner, right, down, c, C), c, C);
                if (plain == nullptr) continue;
                if (!at_once) cell_corners = load_corners<T, VEC, LANES, VECTORS>(cell_node, cell_right, cell_down, c, C);
                add_sample<LANES>(sum0, tap_weights(ty0, tx0), cell_corners, c, C);
            }
            group_log_sum<LANES>(sum, sum0, lane);
            if (lane == s) {
                pixel_lse = log_sum_exp(sum);
                pixel_plain = log_sum_exp(sum0);
            }
        }
        if (!active || first + lane >= kh * kw) continue;
        const size_t at = (size_t)image * HW + Y * W + X;
        lse[at] = pixel_lse;
        if (plain != nullptr) plain[at] = pixel_plain;
    }
}

// The logit of one channel at the position that LaU, or bilinear upsampling, samples: the same formula as for all channels.
// `step` is the distance between pixels of the input.
template <typename T> __device__ __forceinline__ Acc<T> logit_at(
    const T* __restrict__ u, const Axis<Acc<T>>& y, const Axis<Acc<T>>& x, int w, int step) {
    const T* top = u + (size_t)(y.cell * w + x.cell) * step;
    const T* bottom = top + (size_t)(y.far * w) * step;
    const int right = x.far * step;
    return blend<Acc<T>>(tap_weights(y.t, x.t), widen(top[0]), widen(top[right]), widen(bottom[0]), widen(bottom[right]));
}

// NCHW, one offset per channel (M = C): as log_sums_nhwc, with one thread per pixel.
template <typename T>
__global__ void __launch_bounds__(256) log_sums_channels(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, Acc<T>* __restrict__ lse, Acc<T>* __restrict__ plain,
    int images, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw) {
    using A = Acc<T>;
    const int hw = h * w, W = w * kw, HW = hw * kh * kw, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= HW) return;
    const int Y = pixel / W;
    const A py = base_position<A>(Y, kh, rkh), px = base_position<A>(pixel - Y * W, kw, rkw);
    const Axis<A> y0 = locate(py, h), x0 = locate(px, w);
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const T* u = input + (size_t)image * C * hw;
        const A* rows = offset + (size_t)image * 2 * C * HW + pixel;
        LogSum<A> sum = {(A)NO_LOGIT, (A)0}, sum0 = sum;
        for (int c = 0; c < C; ++c, u += hw, rows += HW) {
            const A logit = logit_at(u, locate(py + rows[0], h), locate(px + rows[(size_t)C * HW], w), w, 1);
            add_logits<A, 1, 1>(sum, {{{logit}}});
            if (plain != nullptr) add_logits<A, 1, 1>(sum0, {{{logit_at(u, y0, x0, w, 1)}}});
        }
        lse[(size_t)image * HW + pixel] = log_sum_exp(sum);
        if (plain != nullptr) plain[(size_t)image * HW + pixel] = log_sum_exp(sum0);
    }
}

// One thread per pixel: its term of the sum and the verdict. `rivals` are the log-sum-exps with which the rule compares, of
// the bilinear logits or of the input; null if nothing depends on them. `next_node` and `next_channel` are input strides.
template <typename T>
__global__ void __launch_bounds__(256) judge(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, const long long* __restrict__ target,
    const Acc<T>* __restrict__ lse, const Acc<T>* __restrict__ rivals, Acc<T>* __restrict__ loss, unsigned char* __restrict__ choice,
    int images, int M, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int next_node, int next_channel,
    int rule, Acc<T> punished, Acc<T> regression_weight, Acc<T> beta, long long ignore_index) {
    using A = Acc<T>;
    const int hw = h * w, W = w * kw, HW = hw * kh * kw, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= HW) return;
    const int Y = pixel / W, X = pixel - Y * W, i = Y / kh, j = X / kw;
    const A py = base_position<A>(Y, kh, rkh), px = base_position<A>(X, kw, rkw);
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const size_t at = (size_t)image * HW + pixel;
        const long long label = target[at];
        if (label == ignore_index) {
            loss[at] = (A)0;
            choice[at] = IGNORED;
            continue;
        }
        const bool known = label >= 0 && label < C;
        const int c = known ? (int)label : 0;
        const T* u = input + (size_t)image * C * hw + (size_t)c * next_channel;
        const A* rows = offset + ((size_t)image * 2 * M + (M > 1 ? c : 0)) * HW + pixel;
        const A dy = rows[0], dx = rows[(size_t)M * HW];
        const Axis<A> y = locate(py + dy, h), x = locate(px + dx, w);
        const A nll = known ? plus(lse[at], -logit_at(u, y, x, w, next_node)) : not_a_number<A>();
        int verdict = GOOD;
        A pull = 0;
        if (rule == REGRESSION) {
            const int sy = Y - i * kh, sx = X - j * kw;
            A least = nll;
            for (int corner = 0; corner < 4; ++corner) {
                const int row = min(i + rise_y(corner, sy), h - 1), column = min(j + rise_x(corner, sx), w - 1);
                // A corner that LaU reads exactly has LaU's loss, so it does not beat it.
                if (y.t == (A)0 && y.cell == row && x.t == (A)0 && x.cell == column) continue;
                const int node = row * w + column;
                const A rival = plus(rivals[(size_t)image * hw + node], -widen(u[(size_t)node * next_node]));
                if (rival < least) {
                    least = rival;
                    verdict = CORNER + corner;
                }
            }
            if (verdict != GOOD) {
                const A aim_y = aim(rise_y(verdict - CORNER, sy), sy, kh, rkh), aim_x = aim(rise_x(verdict - CORNER, sx), sx, kw, rkw);
                pull = regression_weight * (A)0.5 * (smooth_l1(dy - aim_y, beta) + smooth_l1(dx - aim_x, beta));
            }
        } else if (rivals != nullptr) {
            const A rival = plus(rivals[at], -logit_at(u, locate(py, h), locate(px, w), w, next_node));
            if (!(rule == TIE_LOSES ? nll < rival : nll <= rival)) verdict = PUNISHED;
        }
        loss[at] = verdict == GOOD ? nll : mad(punished, nll, pull);
        choice[at] = (unsigned char)verdict;
    }
}
