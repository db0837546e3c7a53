// The offset-guided loss with one offset per channel (M = C), NCHW: forward one thread per pixel, backward a gather over
// samples listed by cell (lau_backward.cu). A map is a channel of an image.
#include "loss.cuh"

// The verdict on a pixel: the label is ignored; LaU is good; LaU is not.
constexpr unsigned char IGNORED = 0, GOOD = 1, PUNISHED = 2;

__device__ __forceinline__ float exponential(float v) { return __expf(v); }
__device__ __forceinline__ double exponential(double v) { return exp(v); }
__device__ __forceinline__ float logarithm(float v) { return logf(v); }
__device__ __forceinline__ double logarithm(double v) { return log(v); }

// The log-sum-exp of some logits is peak + log(sum).
template <typename A> struct LogSum { A peak, sum; };

template <typename A> __device__ __forceinline__ void add_logit(LogSum<A>& all, A logit) {
    const A peak = larger(all.peak, logit);
    all = {peak, plus(all.sum * exponential(all.peak - peak), exponential(logit - peak))};
}
template <typename A> __device__ __forceinline__ A log_sum_exp(const LogSum<A>& all) {
    return plus(all.peak, logarithm(all.sum));
}

// The logit of one channel at the position that LaU, or bilinear upsampling, samples.
template <typename T> __device__ __forceinline__ Acc<T> logit_at(
    const T* __restrict__ u, const Axis<Acc<T>>& y, const Axis<Acc<T>>& x, int w) {
    const T* top = u + y.cell * w + x.cell;
    const T* bottom = top + y.far * w;
    return blend<Acc<T>>(tap_weights(y.t, x.t), widen(top[0]), widen(top[x.far]), widen(bottom[0]), widen(bottom[x.far]));
}

// Per pixel, the log-sum-exp of its logits, its term of the sum of the losses, and the verdict.
template <typename T>
__global__ void __launch_bounds__(256) channel_losses(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, const long long* __restrict__ target,
    Acc<T>* __restrict__ lse, Acc<T>* __restrict__ loss, unsigned char* __restrict__ choice,
    int images, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int rule, Acc<T> punished, long long ignore_index) {
    using A = Acc<T>;
    const int hw = h * w, W = w * kw, HW = hw * kh * kw, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= HW) return;
    const int Y = pixel / W;
    const A py = base_position<A>(Y, kh, rkh), px = base_position<A>(pixel - Y * W, kw, rkw);
    const Axis<A> y0 = locate(py, h), x0 = locate(px, w);
    for (int image = blockIdx.y; image < images; image += gridDim.y) {
        const size_t at = (size_t)image * HW + pixel, columns = (size_t)C * HW;
        const long long label = target[at];
        const T* u = input + (size_t)image * C * hw;
        const A* rows = offset + (size_t)image * 2 * C * HW + pixel;
        LogSum<A> sum = {(A)NO_LOGIT, (A)0}, sum0 = sum;
        A labelled = not_a_number<A>(), labelled0 = labelled;
        for (int c = 0; c < C; ++c, u += hw, rows += HW) {
            const A logit = logit_at(u, locate(py + rows[0], h), locate(px + rows[columns], w), w);
            add_logit(sum, logit);
            if (c == label) labelled = logit;
            if (rule == NO_RIVAL) continue;
            const A logit0 = logit_at(u, y0, x0, w);
            add_logit(sum0, logit0);
            if (c == label) labelled0 = logit0;
        }
        const A all = log_sum_exp(sum), nll = plus(all, -labelled), rival = plus(log_sum_exp(sum0), -labelled0);
        const bool good = rule == NO_RIVAL || (rule == TIE_LOSES ? nll < rival : nll <= rival), ignored = label == ignore_index;
        lse[at] = all;
        loss[at] = ignored ? (A)0 : good ? nll : punished * nll;
        choice[at] = ignored ? IGNORED : good ? GOOD : PUNISHED;
    }
}

// What a sample's gradient needs besides its logit. The weight is 0 for an ignored label.
template <typename A> struct Weighed { A lse, weight; int label; };

template <typename A> __device__ __forceinline__ Weighed<A> weighed(
    const A* __restrict__ lse, const unsigned char* __restrict__ choice, const long long* __restrict__ target,
    size_t at, int C, A punished) {
    const unsigned char verdict = choice[at];
    if (verdict == IGNORED) return {-(A)NO_LOGIT, (A)0, -1};
    const long long label = target[at];
    return {lse[at], verdict == GOOD ? (A)1 : punished, label >= 0 && label < C ? (int)label : -1};
}

// One thread per chunk. The gradient of a sampled logit is weight * (softmax - one-hot), and the softmax comes from the
// log-sum-exp that channel_losses stored. `parts` is [corner][max_chunks].
template <typename T>
__global__ void __launch_bounds__(128, 4) loss_gather_channels(
    const T* __restrict__ input, const Acc<T>* __restrict__ offset, const long long* __restrict__ target,
    const Acc<T>* __restrict__ lse, const unsigned char* __restrict__ choice,
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
        const Weighed<A> known = weighed(lse, choice, target, (size_t)image * HW + entry.pixel, C, punished);
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
