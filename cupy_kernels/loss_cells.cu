// The location-aware losses with M = 1, NHWC, in one pass over samples listed by cell (lau_backward.cu counts them and starts
// their lists): a warp holds the planes of a cell's channels in registers, and from them the log-sum-exp of each sample, its
// loss and weight, and its gradients.
//
//   scatter_pixels  the lists: the pixel of each sample
//   loss_cells      per chunk of at most 32 samples of a cell: losses, offset gradients, and the gradients of its corners
//
// All pointers are of the first image; the gradients are those of the sum of the losses.
#include "loss.cuh"

// Writes the lists, and the loss and the offset gradient (may be null) of the pixels that are in no list: those of NaN
// offsets. Blocks along y are images. With a null `rank` the samples take their places by counting `start` up.
template <typename A>
__global__ void __launch_bounds__(256) scatter_pixels(
    const A* __restrict__ offset, const long long* __restrict__ target, const int* __restrict__ rank, int* __restrict__ start,
    int* __restrict__ pixels, A* __restrict__ loss, A* __restrict__ grad_offset,
    int h, int w, int kh, int kw, A rkh, A rkw, Divisor by_W, Divisor by_kh, Divisor by_kw, long long ignore_index) {
    const int W = w * kw, HW = h * kh * W, image = blockIdx.y, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t plane = (size_t)image * 2 * HW + pixel;
    int cell = -1;
    if (pixel < HW) cell = cell_of(moved(base_of(pixel, W, kh, kw, rkh, rkw, by_W, by_kh, by_kw), offset + plane, HW), h, w);
    int* const starts = start + image * h * w;
    int place;
    if (rank == nullptr) place = take_places(starts, cell);
    else place = cell < 0 ? 0 : starts[cell] + rank[image * HW + pixel];
    if (cell >= 0) {
        pixels[place] = pixel;
    } else if (pixel < HW) {
        const size_t at = (size_t)image * HW + pixel;
        loss[at] = target[at] == ignore_index ? (A)0 : not_a_number<A>();
        if (grad_offset != nullptr) grad_offset[plane] = grad_offset[plane + HW] = (A)0;
    }
}

// Where in its cell a pixel lies.
struct Step { int i, j, y, x; };

__device__ __forceinline__ Step step_of(int pixel, int w, int kh, int kw, Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int Y = quotient(pixel, by_W), X = pixel - Y * w * kw, i = quotient(Y, by_kh), j = quotient(X, by_kw);
    return {i, j, Y - i * kh, X - j * kw};
}

// The best corner of a pixel's cell, and its loss.
template <typename A> struct Corner { A loss; int corner; };

template <typename T> __device__ __forceinline__ Corner<Acc<T>> best_corner(
    const T* __restrict__ input, const Acc<T>* __restrict__ peaks, const Acc<T>* __restrict__ sums, int label,
    const Axis<Acc<T>>& y, const Axis<Acc<T>>& x, const Step& step, int C, int h, int w) {
    using A = Acc<T>;
    Corner<A> best = {infinity<A>(), 0};
    for (int corner = 0; corner < 4; ++corner) {
        const int row = min(step.i + rise_y(corner, step.y), h - 1), column = min(step.j + rise_x(corner, step.x), w - 1);
        // A corner that LaU reads exactly has LaU's loss, so it does not beat it.
        if (y.t == (A)0 && y.cell == row && x.t == (A)0 && x.cell == column) continue;
        const int node = row * w + column;
        const A rival = loss_of(sums[node], labelled(mad(widen(input[(size_t)node * C + label]), (A)LOG2_E, -peaks[node])));
        if (rival < best.loss) best = {rival, corner};
    }
    return best;
}

// The mean of a sample's logits under its softmax, by one lane.
template <typename T> __device__ __forceinline__ Acc<T> mean_logit(
    const T* u, int to_right, int to_below, int C, Acc<T> peak, Acc<T> ty, Acc<T> tx, Acc<T> shift, Acc<T> sum) {
    Acc<T> mean = 0;
#pragma unroll 1
    for (int c = 0; c < C; ++c) {
        const Acc<T> v = logit_of(plane_at(u + c, to_right, to_below, peak), ty, tx) - shift;
        mean = mad(v, exp_2(v), mean);
    }
    return mean / sum;
}

// What the lanes of a group have summed up of one sample's offset gradient.
template <typename A> struct alignas(2 * sizeof(A)) Pair { A y, x; };
template <typename A> struct alignas(4 * sizeof(A)) Quad { A v0, v1, v2, v3; };

// What all lanes of a group need of a sample. The weight is 0 for an ignored label, and where there is no sample.
template <typename A> struct alignas(4 * sizeof(A)) Place { A ty, tx, weight; int label; };
template <typename A> struct alignas(4 * sizeof(A)) Judge { Labelled<A> label; A rival; };
// What its own lane needs of it in the end: the logit of the label, and its slopes.
template <typename A> struct alignas(4 * sizeof(A)) Own { A logit, slope_y, slope_x; int pixel; };

// Bits of a sample: the derivatives that exist, SLOPE_Y and SLOPE_X; where its position is an integer; its best corner.
constexpr int INTEGER_Y = 4, INTEGER_X = 8, CORNER = 16;

// Whether groups sum up through shared memory: by shuffles that would take most of the time. A warp that is one group of 32
// shuffles.
template <int LANES> constexpr bool SHARES = LANES < 32;
// Warps of a block: more channels per lane need more registers, and double needs more shared memory.
template <typename T, int VECTORS> constexpr int WARPS = VECTORS > 8 || sizeof(T) == 8 ? 4 : 8;
constexpr int PAIR_ROW = 34;  // pairs: 32 lanes, and two so that the lanes of a group read from different banks

// One warp per chunk. Groups of LANES lanes share out its samples, and a group's lanes the channels: a lane has channels
// lane, lane + LANES, ..., VECTORS of them at a time. Each lane knows one sample, and takes part in all of its group.
//
// `loss` holds the rivals L' (in base 2) of equation 3, and receives the losses. The gradients of a cell's corners are
// written to `parts` (one writer each, for `combine`) or added to `grad_input`. TURNS: C exceeds LANES * VECTORS.
template <typename T, int LANES, int VECTORS, bool GRADIENTS, bool TURNS>
__global__ void __launch_bounds__(WARPS<T, VECTORS> * 32, VECTORS > 8 ? 3 : 2) loss_cells(
    const T* __restrict__ input, const Acc<T>* __restrict__ peaks, const Acc<T>* __restrict__ sums,
    const Acc<T>* __restrict__ offset, const long long* __restrict__ target,
    const Chunk* __restrict__ chunks, const int* __restrict__ totals, const int* __restrict__ pixels,
    Acc<T>* __restrict__ loss, Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_input, Acc<T>* __restrict__ grad_offset,
    int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw,
    Divisor by_hw, Divisor by_w, Divisor by_W, Divisor by_kh, Divisor by_kw,
    int rule, Acc<T> punished, Acc<T> regression_weight, Acc<T> beta, long long ignore_index, int code) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, BLOCK = LANES * VECTORS;
    constexpr int QUADS = (VECTORS + 3) / 4;  // of sums per corner and lane, that shared memory takes in one access
    constexpr int SUMS = 4 * QUADS * 32 * 4, PAIRS = 2 * PAIR_ROW * LANES;  // in turns in one place
    constexpr int SCRATCH = !GRADIENTS || !SHARES<LANES> ? 0 : SUMS > PAIRS ? SUMS : PAIRS;
    LAU_DYNAMIC_SHARED(A, shared);
    Place<A>* const places = reinterpret_cast<Place<A>*>(shared + threadIdx.x / 32 * (12 * 32 + SCRATCH));
    Judge<A>* const judges = reinterpret_cast<Judge<A>*>(places + 32);
    Own<A>* const owns = reinterpret_cast<Own<A>*>(judges + 32);
    A* const scratch = reinterpret_cast<A*>(owns + 32);
    const int index = blockIdx.x * WARPS<T, VECTORS> + threadIdx.x / 32;
    if (index >= totals[1]) return;  // the chunks after these were never written
    const Chunk chunk = chunks[index];
    const int thread = threadIdx.x % 32, lane = thread % LANES, group = thread / LANES, HW = h * w * kh * kw;
    const int image = quotient(chunk.cell, by_hw), cell = chunk.cell - image * h * w, y = quotient(cell, by_w), x = cell - y * w;
    const int right = x < w - 1 ? 1 : 0, below = y < h - 1 ? w : 0, to_right = right * C, to_below = below * C;
    const A peak = peak_of_cell(peaks + chunk.cell, right, below);
    const T* const u = input + (size_t)chunk.cell * C;

    // The sample of this lane: consecutive samples go to different groups.
    const int sample = lane * GROUPS + group;
    const bool present = sample < chunk.length;
    int bits = 0;
    A sum = 1, shift = 0;
    Place<A> place = {(A)0, (A)0, (A)0, -1};
    Judge<A> judge = {{(A)0, (A)0, (A)0}, (A)0};
    Own<A> own = {not_a_number<A>(), (A)0, (A)0, 0};
    if (present) {
        const int pixel = own.pixel = pixels[chunk.begin + sample];
        const size_t at = (size_t)image * HW + pixel, plane = at + (size_t)image * HW;
        const Position<A> p = moved(base_of(pixel, w * kw, kh, kw, rkh, rkw, by_W, by_kh, by_kw), offset + plane, HW);
        const Axis<A> row = locate(p.y, h), column = locate(p.x, w);
        const long long given = target[at];
        const int label = given >= 0 && given < C ? (int)given : -1;
        place = {row.t, column.t, given == ignore_index ? (A)0 : (A)1, label};
        if (label >= 0) {
            const Plane<A> plane = plane_at(u + label, to_right, to_below, peak);
            own = {logit_of(plane, row.t, column.t), mad(column.t, plane.twist, plane.down), along_x(plane, row.t), pixel};
        }
        judge.label = labelled(own.logit);
        if (GRADIENTS) {
            bits = (has_slope(p.y, h) ? SLOPE_Y : 0) | (has_slope(p.x, w) ? SLOPE_X : 0);
            if (code) bits |= (on_integer(p.y, h, row.t) ? INTEGER_Y : 0) | (on_integer(p.x, w, column.t) ? INTEGER_X : 0);
        }
        if (rule < REGRESSION) judge.rival = loss[at];
        if (rule == REGRESSION) {
            const size_t first = (size_t)image * h * w;
            const Corner<A> best = best_corner(input + first * C, peaks + first, sums + first, label < 0 ? 0 : label, row, column,
                                               step_of(pixel, w, kh, kw, by_W, by_kh, by_kw), C, h, w);
            judge.rival = best.loss;
            bits |= CORNER * best.corner;
        }
    }
    places[sample] = place;
    judges[sample] = judge;
    owns[sample] = own;
    __syncwarp();
    if (TURNS) {
        for (int i = 0; i < chunk.length; ++i) {  // LANES is 32
            const Place<A> at = places[i];
            A largest = 0, all = sum_of_group<LANES>(u, to_right, to_below, C, peak, at.ty, at.tx, largest);
            if (is_lost(all)) {
                largest = largest_logit(u, to_right, to_below, C, peak, at.ty, at.tx);
                all = sum_of_group<LANES>(u, to_right, to_below, C, peak, at.ty, at.tx, largest);
            }
            if (lane == i) {
                sum = all;
                shift = largest;
                judges[sample].label = labelled(owns[sample].logit - shift);
            }
        }
        __syncwarp();
    }
    const bool ties = rule != TIE_LOSES;
    const auto good = [&](A nll, A rival) { return (ties && nll == rival) || nll < rival; };

    A grad_y = 0, grad_x = 0;  // the sums over all channels of the probabilities times the slopes of the logits
    for (int block = 0; block < (TURNS ? C : 1); block += BLOCK) {
        if (!GRADIENTS && TURNS) break;
        Plane<A> planes[VECTORS];
        A s00[VECTORS], s01[VECTORS], s10[VECTORS], s11[VECTORS];
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
            const int c = block + lane + q * LANES;
            // Only the last two vectors may end before their last lane, or begin behind the last channel: `lanes_of`.
            if (!TURNS && q < VECTORS - 2) planes[q] = plane_at(u + c, to_right, to_below, peak);
            else planes[q] = c < C ? plane_at(u + c, to_right, to_below, peak) : Plane<A>{(A)NO_LOGIT, (A)0, (A)0, (A)0};
            s00[q] = s01[q] = s10[q] = s11[q] = (A)0;
        }
#pragma unroll 1
        for (int i = 0; i * GROUPS < chunk.length; ++i) {
            const Place<A> at = places[i * GROUPS + group];
            const A sy = at.ty, sx = at.tx;
            A less = 0, e[VECTORS], all, down, across, twist;
            const auto sum_up = [&]() {
                all = down = across = twist = (A)0;
#pragma unroll
                for (int q = 0; q < VECTORS; ++q) {
                    const A slope = along_x(planes[q], sy);
                    e[q] = exp_2(mad(sx, slope, mad(sy, planes[q].down, planes[q].near)) - less);
                    all = plus(all, e[q]);
                    down = mad(planes[q].down, e[q], down);
                    twist = mad(planes[q].twist, e[q], twist);
                    across = mad(slope, e[q], across);
                }
            };
            if (TURNS) {
                less = __shfl_sync(ALL_LANES, shift, i);
                sum_up();
                all = __shfl_sync(ALL_LANES, sum, i);
            } else {
                sum_up();
                all = group_sum<LANES>(all);
                const bool any_lost = __any_sync(ALL_LANES, is_lost(all));
                if (any_lost) {
                    less = logit_of(planes[0], sy, sx);
#pragma unroll
                    for (int q = 1; q < VECTORS; ++q) less = larger(less, logit_of(planes[q], sy, sx));
#pragma unroll
                    for (int d = LANES / 2; d > 0; d /= 2) less = larger(less, __shfl_xor_sync(ALL_LANES, less, d));
                    if (!is_lost(all)) less = 0;
                    sum_up();
                    all = group_sum<LANES>(all);
                    if (lane == i) {
                        shift = less;
                        judges[sample].label = labelled(owns[sample].logit - less);
                    }
                    __syncwarp();
                }
                if (lane == i) sum = all;
            }
            if (!GRADIENTS) continue;
            const A along_y = mad(sx, twist, down);
            if (SHARES<LANES>) {
                reinterpret_cast<Pair<A>*>(scratch)[i * PAIR_ROW + thread] = {along_y, across};
            } else {
                A sum_y = along_y, sum_x = across;
                group_sum<LANES>(sum_y, sum_x, lane);
                if (lane == i) {
                    grad_y += sum_y;
                    grad_x += sum_x;
                }
            }
            const Judge<A> by = judges[i * GROUPS + group];
            const A scale = ratio(good(loss_of(all, by.label), by.rival) ? at.weight : at.weight * punished, all);
            const int mine = at.label - lane - block;
            const A w1 = scale * sy, w0 = scale - w1, w11 = w1 * sx, w10 = w1 - w11, w01 = w0 * sx, w00 = w0 - w01;
#pragma unroll
            for (int q = 0; q < VECTORS; ++q) {
                A g = e[q];
                if (mine == q * LANES) g -= all;
                s00[q] = mad(w00, g, s00[q]);
                s01[q] = mad(w01, g, s01[q]);
                s10[q] = mad(w10, g, s10[q]);
                s11[q] = mad(w11, g, s11[q]);
            }
        }
        if (!GRADIENTS) break;
        if (SHARES<LANES>) {
            __syncwarp();
            const Pair<A>* pairs = reinterpret_cast<Pair<A>*>(scratch) + lane * PAIR_ROW + group * LANES;
#pragma unroll
            for (int l = 0; l < LANES; ++l) {
                if (!present) break;
                grad_y += pairs[l].y;
                grad_x += pairs[l].x;
            }
            __syncwarp();
        }
        if (parts == nullptr && grad_input == nullptr) continue;
        if (SHARES<LANES>) {
            const auto keep = [&](int corner, const A* sums) {
#pragma unroll
                for (int q = 0; q < VECTORS; q += 4) {
                    Quad<A>* const to = reinterpret_cast<Quad<A>*>(scratch) + (corner * QUADS + q / 4) * 32 + thread;
                    *to = {sums[q], sums[q + 1 < VECTORS ? q + 1 : q], sums[q + 2 < VECTORS ? q + 2 : q], sums[q + 3 < VECTORS ? q + 3 : q]};
                }
            };
            keep(0, s00);
            keep(1, s01);
            keep(2, s10);
            keep(3, s11);
            __syncwarp();
        }
        // Neighbouring lanes add neighbouring channels. At the last row and column the far corners have weight 0.
#pragma unroll
        for (int n = 0; n < 4; ++n) {
            A* const out = parts != nullptr ? parts + ((size_t)index * 4 + n) * C
                                            : grad_input + (size_t)chunk.cell * C + (n & 1 ? to_right : 0) + (n & 2 ? to_below : 0);
            const bool exists = parts != nullptr || ((!(n & 1) || right) && (!(n & 2) || below));
#pragma unroll
            for (int q = 0; q < VECTORS; q += GROUPS) {
                const int c = block + q * LANES + thread;
                A v;
                if (SHARES<LANES>) {  // a lane's vector q + group, from all groups
                    if (q + group >= VECTORS) continue;
                    const A* from = scratch + ((n * QUADS + (q + group) / 4) * 32 + lane) * 4 + (q + group) % 4;
                    v = from[0];
#pragma unroll
                    for (int g = 1; g < GROUPS; ++g) v += from[g * LANES * 4];
                } else {
                    v = n == 0 ? s00[q] : n == 1 ? s01[q] : n == 2 ? s10[q] : s11[q];
                }
                if (c >= C || !exists) continue;
                if (parts != nullptr) out[c] = v;
                else atomicAdd(out + c, v);
            }
        }
        __syncwarp();
    }

    if (!present) return;
    place = places[sample];
    judge = judges[sample];
    own = owns[sample];
    const int pixel = own.pixel;
    const size_t at = (size_t)image * HW + pixel, plane = at + (size_t)image * HW;
    const A nll = loss_of(sum, judge.label), weight = place.weight;
    const A factor = good(nll, judge.rival) ? weight : weight * punished;
    A pull = 0, pull_y = 0, pull_x = 0;  // the regression's term, and its derivatives
    if (rule == REGRESSION) {
        const Step step = step_of(pixel, w, kh, kw, by_W, by_kh, by_kw);
        const A off_y = offset[plane] - aim(rise_y(bits / CORNER, step.y), step.y, kh, rkh);
        const A off_x = offset[plane + HW] - aim(rise_x(bits / CORNER, step.x), step.x, kw, rkw);
        const A half = weight == (A)0 || good(nll, judge.rival) ? (A)0 : regression_weight * (A)0.5;
        if (half != (A)0) {
            pull = half * (smooth_l1(off_y, beta) + smooth_l1(off_x, beta));
            pull_y = half * smooth_l1_slope(off_y, beta);
            pull_x = half * smooth_l1_slope(off_x, beta);
        }
    }
    loss[at] = weight == (A)0 ? (A)0 : mad(factor, nll * (A)LN_2, pull);
    if (!GRADIENTS || grad_offset == nullptr) return;
    const A base_e = factor * (A)LN_2;
    A out_y = bits & SLOPE_Y ? base_e * (ratio(grad_y, sum) - own.slope_y) : (A)0;
    A out_x = bits & SLOPE_X ? base_e * (ratio(grad_x, sum) - own.slope_x) : (A)0;
    if (bits & (INTEGER_Y | INTEGER_X)) {
        const A mean = mean_logit(u, to_right, to_below, C, peak, place.ty, place.tx, shift, sum) + shift;
        const A value = base_e * (mean - (place.label < 0 ? -peak : own.logit));
        if (bits & INTEGER_Y) out_y = -value;
        if (bits & INTEGER_X) out_x = -value;
    }
    grad_offset[plane] = out_y + pull_y;
    grad_offset[plane + HW] = out_x + pull_x;
}
