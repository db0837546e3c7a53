// LaU, backward, as a gather: every sample (a pixel of a map) reads one cell of the input, so samples sorted by cell can be
// summed in registers. No float atomics; only the order within a cell may vary, and only where samples take their places as
// they come instead of by a stable sort.
//
//   count_cells    the number of samples per cell
//   rank_sorted    each sample's rank within its cell by a stable sort, if requested
//   list_cells     the start of each cell's list, and its division into chunks of at most `capacity` samples
//   scatter_cells  the lists: per sample its pixel, its fractions and the derivatives that exist
//   gather_*       per chunk: its part of the gradients of the cell's four corners, and the offset gradients of its samples
//   combine        per input value: the sum of the parts of the cells, up to four, of which it is a corner
//   integer_rule   overwrites offset gradients at integers by the released code's rule, if requested
//
// C is the number of channels of a map. Maps first_map to first_map + maps - 1 are processed; input, grad and grad_input
// start at the first of them, offset and grad_offset at map 0.
#include "cells.cuh"

// Blocks along y are maps. `count` must be 0. `key` (KEY: for a sort) is, per sample, the cell; maps * h * w where the offset is
// NaN.
template <typename A, bool KEY>
__global__ void __launch_bounds__(256) count_cells(
    const A* __restrict__ offset, int* __restrict__ key, int* __restrict__ count,
    int first_map, int M, Divisor by_M, int h, int w, int kh, int kw, A rkh, A rkw,
    Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int W = w * kw, HW = h * kh * W, map = blockIdx.y, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    int cell = -1;
    if (pixel < HW) {
        const size_t plane = plane_of(first_map + map, M, HW, by_M) + pixel;
        const Position<A> base = base_of(pixel, W, kh, kw, rkh, rkw, by_W, by_kh, by_kw);
        cell = cell_of(moved(base, offset == nullptr ? nullptr : offset + plane, (size_t)M * HW), h, w);
        if (KEY) key[map * HW + pixel] = cell < 0 ? (int)gridDim.y * h * w : map * h * w + cell;
    }
    const unsigned peers = __match_any_sync(ALL_LANES, cell);
    if ((threadIdx.x & 31) == __ffs((int)peers) - 1 && cell >= 0) atomicAdd(count + map * h * w + cell, __popc(peers));
}

// The ranks by a stable sort by cell; `before` is the inclusive prefix sum of `count`.
__global__ void __launch_bounds__(256) rank_sorted(
    const int* __restrict__ sorted_cell, const long long* __restrict__ permutation, const int* __restrict__ count,
    const int* __restrict__ before, int* __restrict__ rank, int samples, int cells) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= samples) return;
    const int cell = sorted_cell[i];
    rank[permutation[i]] = cell < cells ? i - (before[cell] - count[cell]) : -1;
}

__device__ __forceinline__ int chunks_of(int length, int capacity) { return (length + capacity - 1) / capacity; }

// The sum over the block's lower threads; `total` is set to the sum over all 256.
__device__ __forceinline__ int exclusive_sum(int v, int& total, int* sums) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    int inclusive = v;
#pragma unroll
    for (int d = 1; d < 32; d *= 2) {
        const int lower = __shfl_up_sync(ALL_LANES, inclusive, d);
        if (lane >= d) inclusive += lower;
    }
    if (lane == 31) sums[warp] = inclusive;
    __syncthreads();
    int before = 0;
    total = 0;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    __syncthreads();  // the next call may overwrite `sums`
    return before + inclusive - v;
}

// Blocks of 256 cells; `totals` (entries, chunks) must be 0. The lists of a block are consecutive. Where they start depends
// on the order in which the blocks run; nothing else does. The chunks of a block are shared out among its threads, whatever
// cell they are of: with all samples in one cell, each thread writes a 256th of the chunks. `first_chunk` may be null.
__global__ void __launch_bounds__(256) list_cells(
    const int* __restrict__ count, int* __restrict__ totals, int* __restrict__ start, int* __restrict__ first_chunk,
    Chunk* __restrict__ chunks, int cells, int capacity) {
    __shared__ int sums[8];
    __shared__ int base[2];
    __shared__ int firsts[256], begins[256], lengths[256];
    const int thread = threadIdx.x, block = blockIdx.x * 256, cell = block + thread, length = cell < cells ? count[cell] : 0;
    int block_length, block_parts;
    const int begin = exclusive_sum(length, block_length, sums);
    const int first = exclusive_sum(chunks_of(length, capacity), block_parts, sums);
    firsts[thread] = first;
    begins[thread] = begin;
    lengths[thread] = length;
    if (thread == 0) {
        base[0] = atomicAdd(totals, block_length);
        base[1] = atomicAdd(totals + 1, block_parts);
    }
    __syncthreads();
    if (cell < cells) {
        start[cell] = base[0] + begin;
        if (first_chunk != nullptr) first_chunk[cell] = base[1] + first;
    }
    for (int i = thread; i < block_parts; i += 256) {
        int at = 0;  // the last cell whose chunks begin at i or before: those that have none begin where the next one's do
#pragma unroll
        for (int d = 128; d > 0; d /= 2)
            if (firsts[at + d] <= i) at += d;
        // The lengths of a cell's chunks differ by at most one. A cell that has chunk i has at least one.
        const int parts = max(chunks_of(lengths[at], capacity), 1), part = i - firsts[at];
        const int least = lengths[at] / parts, longer = lengths[at] - least * parts;
        chunks[base[1] + i] = {block + at, base[0] + begins[at] + part * least + min(part, longer), least + (part < longer)};
    }
}

// Writes the lists, and the offset gradient (may be null) of the samples that are in no list: those of NaN offsets. Blocks
// along y are maps. With a null `rank` the samples take their places by counting `start` up.
template <typename A>
__global__ void __launch_bounds__(256) scatter_cells(
    const A* __restrict__ offset, const int* __restrict__ rank, int* __restrict__ start,
    Entry<A>* __restrict__ entries, A* __restrict__ grad_offset,
    int first_map, int M, Divisor by_M, int h, int w, int kh, int kw, A rkh, A rkw,
    Divisor by_W, Divisor by_kh, Divisor by_kw) {
    const int W = w * kw, HW = h * kh * W, map = blockIdx.y, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    const size_t plane = plane_of(first_map + map, M, HW, by_M) + pixel;
    Position<A> p = {(A)0, (A)0};
    int cell = -1;
    if (pixel < HW) {
        p = base_of(pixel, W, kh, kw, rkh, rkw, by_W, by_kh, by_kw);
        p = moved(p, offset == nullptr ? nullptr : offset + plane, (size_t)M * HW);
        cell = cell_of(p, h, w);
    }
    int* const starts = start + map * h * w;
    int place;
    if (rank == nullptr) place = take_places(starts, cell);
    else place = cell < 0 ? 0 : starts[cell] + rank[map * HW + pixel];
    if (cell >= 0) {
        const int slopes = (has_slope(p.y, h) ? SLOPE_Y : 0) | (has_slope(p.x, w) ? SLOPE_X : 0);
        entries[place] = {locate(p.y, h).t, locate(p.x, w).t, pixel, slopes};
    } else if (pixel < HW && grad_offset != nullptr) {
        grad_offset[plane] = grad_offset[plane + (size_t)M * HW] = (A)0;
    }
}

// NHWC, M = 1. One warp per chunk of at most 32 samples, which the groups of lanes share out; a lane holds VECTORS vectors
// of VEC channels: the cell's slopes, and the sums for its four corners.
template <typename T, int VEC, int LANES, int VECTORS>
__global__ void __launch_bounds__(256, 2) gather_nhwc(
    const T* __restrict__ grad, const T* __restrict__ input, const Chunk* __restrict__ chunks, const int* __restrict__ totals,
    const Entry<Acc<T>>* __restrict__ entries, Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_offset,
    int first_map, int C, int h, int w, int HW) {
    using A = Acc<T>;
    constexpr int GROUPS = 32 / LANES, STEP = LANES * VEC;
    const int index = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32;
    if (index >= totals[1]) return;  // the chunks after these were never written
    const Chunk chunk = chunks[index];
    const int lane = threadIdx.x % LANES, group = threadIdx.x % 32 / LANES;
    const int map = chunk.cell / (h * w), cell = chunk.cell - map * h * w, y = cell / w, x = cell - y * w;
    const int to_right = x < w - 1 ? C : 0, to_below = y < h - 1 ? w * C : 0;
    const T* u = input + (size_t)chunk.cell * C;
    const T* g = grad + (size_t)map * HW * C;

    // The sample of this lane: consecutive samples go to different groups.
    const int lane_sample = lane * GROUPS + group;
    Entry<A> entry = {(A)0, (A)0, 0, 0};
    if (lane_sample < chunk.length) entry = entries[chunk.begin + lane_sample];
    A grad_y = 0, grad_x = 0;

    for (int block = 0; block < C; block += STEP * VECTORS) {
        const int c0 = block + lane * VEC;
        Slopes<A> slopes[VECTORS][VEC];
        A s00[VECTORS][VEC], s01[VECTORS][VEC], s10[VECTORS][VEC], s11[VECTORS][VEC];
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
                slopes[q][j] = slopes_of<A>(widen(a.v[j]), widen(b.v[j]), widen(d.v[j]), widen(e.v[j]));
                s00[q][j] = s01[q][j] = s10[q][j] = s11[q][j] = (A)0;
            }
        }
        // Prefetches the next sample while this one is summed; 0 after the last.
        Vec<T, VEC> next[VECTORS];
        const auto fetch = [&](int i) {
            const T* sample = g + (size_t)__shfl_sync(ALL_LANES, entry.pixel, i, LANES) * C;
#pragma unroll
            for (int q = 0; q < VECTORS; ++q) {
                next[q] = {};
                if (i * GROUPS + group < chunk.length && c0 + q * STEP < C) next[q] = load<VEC>(sample + c0 + q * STEP);
            }
        };
        fetch(0);
        for (int i = 0; i * GROUPS < chunk.length; ++i) {
            Vec<T, VEC> v[VECTORS];
#pragma unroll
            for (int q = 0; q < VECTORS; ++q) v[q] = next[q];
            fetch(i + 1);
            const A ty = __shfl_sync(ALL_LANES, entry.ty, i, LANES), tx = __shfl_sync(ALL_LANES, entry.tx, i, LANES);
            const Weights<A> weight = tap_weights(ty, tx);
            A down = 0, right = 0, twist = 0;
#pragma unroll
            for (int q = 0; q < VECTORS; ++q) {
#pragma unroll
                for (int j = 0; j < VEC; ++j) {
                    const A gv = widen(v[q].v[j]);
                    s00[q][j] = mad(weight.w00, gv, s00[q][j]);
                    s01[q][j] = mad(weight.w01, gv, s01[q][j]);
                    s10[q][j] = mad(weight.w10, gv, s10[q][j]);
                    s11[q][j] = mad(weight.w11, gv, s11[q][j]);
                    down = mad(slopes[q][j].down, gv, down);
                    right = mad(slopes[q][j].right, gv, right);
                    twist = mad(slopes[q][j].twist, gv, twist);
                }
            }
            A along_y = mad(tx, twist, down), along_x = mad(ty, twist, right);
            group_sum<LANES>(along_y, along_x, lane);
            if (lane == i) {
                grad_y += along_y;
                grad_x += along_x;
            }
        }
        if (parts == nullptr) continue;
        A* out = parts + (size_t)index * 4 * C;
#pragma unroll
        for (int q = 0; q < VECTORS; ++q) {
            const int c = c0 + q * STEP;
            Vec<A, VEC> o00, o01, o10, o11;
#pragma unroll
            for (int j = 0; j < VEC; ++j) {
                o00.v[j] = across_groups<LANES>(s00[q][j]);
                o01.v[j] = across_groups<LANES>(s01[q][j]);
                o10.v[j] = across_groups<LANES>(s10[q][j]);
                o11.v[j] = across_groups<LANES>(s11[q][j]);
            }
            if (group > 0 || c >= C) continue;
            store<VEC>(out + c, o00);
            store<VEC>(out + C + c, o01);
            store<VEC>(out + 2 * C + c, o10);
            store<VEC>(out + 3 * C + c, o11);
        }
    }
    if (grad_offset == nullptr || lane_sample >= chunk.length) return;
    A* rows = grad_offset + (size_t)(first_map + map) * 2 * HW + entry.pixel;
    rows[0] = entry.slopes & SLOPE_Y ? grad_y : (A)0;
    rows[HW] = entry.slopes & SLOPE_X ? grad_x : (A)0;
}

// One thread's part of gather_nchw for CHANNELS channels, starting at c0: sums the samples of `column` into its corners and
// offset gradients. Indices within a map fit into 32 bits.
template <typename T, int CHANNELS, typename A> __device__ __forceinline__ void gather_channels(
    const T* __restrict__ g, const T* __restrict__ u, const Entry<A>* column, A* sum_y, A* sum_x, int length,
    A* __restrict__ parts, int c0, int C, int hw, int HW, int cell, int to_right, int to_below, int max_chunks) {
    Slopes<A> slopes[CHANNELS];
    A s00[CHANNELS], s01[CHANNELS], s10[CHANNELS], s11[CHANNELS];
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j) {
        const unsigned at = (c0 + j) * hw + cell;
        slopes[j] = slopes_of<A>(widen(u[at]), widen(u[at + to_right]), widen(u[at + to_below]), widen(u[at + to_below + to_right]));
        s00[j] = s01[j] = s10[j] = s11[j] = (A)0;
    }
    for (int i = 0; i < length; ++i) {
        const Entry<A> entry = column[i * blockDim.x];
        const Weights<A> weight = tap_weights(entry.ty, entry.tx);
        A v[CHANNELS], down = 0, right = 0, twist = 0;
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) v[j] = widen(g[(unsigned)((c0 + j) * HW + entry.pixel)]);
#pragma unroll
        for (int j = 0; j < CHANNELS; ++j) {
            s00[j] = mad(weight.w00, v[j], s00[j]);
            s01[j] = mad(weight.w01, v[j], s01[j]);
            s10[j] = mad(weight.w10, v[j], s10[j]);
            s11[j] = mad(weight.w11, v[j], s11[j]);
            down = mad(slopes[j].down, v[j], down);
            right = mad(slopes[j].right, v[j], right);
            twist = mad(slopes[j].twist, v[j], twist);
        }
        sum_y[i * blockDim.x] += mad(entry.tx, twist, down);
        sum_x[i * blockDim.x] += mad(entry.ty, twist, right);
    }
    if (parts == nullptr) return;
    const size_t corner = (size_t)C * max_chunks;
    parts += (size_t)c0 * max_chunks;
#pragma unroll
    for (int j = 0; j < CHANNELS; ++j, parts += max_chunks) {
        parts[0] = s00[j];
        parts[corner] = s01[j];
        parts[2 * corner] = s10[j];
        parts[3 * corner] = s11[j];
    }
}

// NCHW. One thread per chunk of at most CAPACITY samples: neighbouring threads have neighbouring cells and read the same
// plane. MANY channels are held in registers at a time; the samples and their sums are in shared memory, in a column per
// thread.
template <typename T, int CAPACITY>
__global__ void __launch_bounds__(128, 4) gather_nchw(
    const T* __restrict__ grad, const T* __restrict__ input, const Chunk* __restrict__ chunks, const int* __restrict__ totals,
    const Entry<Acc<T>>* __restrict__ entries, Acc<T>* __restrict__ parts, Acc<T>* __restrict__ grad_offset,
    int first_map, int M, int C, int h, int w, int HW, int max_chunks) {
    using A = Acc<T>;
    constexpr int MANY = sizeof(A) == 8 ? 4 : 8;
    LAU_DYNAMIC_SHARED(Entry<A>, shared);
    const int index = blockIdx.x * blockDim.x + threadIdx.x, threads = blockDim.x;
    if (index >= totals[1]) return;  // the chunks after these were never written
    const Chunk chunk = chunks[index];
    Entry<A>* column = shared + threadIdx.x;
    A* sum_y = reinterpret_cast<A*>(shared + CAPACITY * threads) + threadIdx.x;
    A* sum_x = sum_y + CAPACITY * threads;
#pragma unroll 4
    for (int i = 0; i < chunk.length; ++i) {
        column[i * threads] = entries[chunk.begin + i];
        sum_y[i * threads] = sum_x[i * threads] = (A)0;
    }
    const int hw = h * w, map = chunk.cell / hw, cell = chunk.cell - map * hw, y = cell / w, x = cell - y * w;
    const int to_right = x < w - 1 ? 1 : 0, to_below = y < h - 1 ? w : 0;
    const T* u = input + (size_t)map * C * hw;
    const T* g = grad + (size_t)map * C * HW;
    A* out = parts == nullptr ? nullptr : parts + index;
    int c = 0;
    for (; c + MANY <= C; c += MANY)
        gather_channels<T, MANY>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    for (; c + 2 <= C; c += 2)
        gather_channels<T, 2>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    if (c < C)
        gather_channels<T, 1>(g, u, column, sum_y, sum_x, chunk.length, out, c, C, hw, HW, cell, to_right, to_below, max_chunks);
    if (grad_offset == nullptr) return;
    A* rows = grad_offset + offset_plane(first_map + map, M, HW);
#pragma unroll 4
    for (int i = 0; i < chunk.length; ++i) {
        const Entry<A> entry = column[i * threads];
        rows[entry.pixel] = entry.slopes & SLOPE_Y ? sum_y[i * threads] : (A)0;
        rows[entry.pixel + (size_t)M * HW] = entry.slopes & SLOPE_X ? sum_x[i * threads] : (A)0;
    }
}

// `parts` is [chunk][corner][C] (LAST) or [corner][C][max_chunks]. A cell without samples has no chunks. At the last row
// and column a cell's far corners do not exist; their weights are 0, so nothing is lost.
template <typename T, bool LAST>
__global__ void __launch_bounds__(256) combine(
    const Acc<T>* __restrict__ parts, const int* __restrict__ count, const int* __restrict__ first_chunk,
    T* __restrict__ grad_input, int maps, int C, int h, int w, int capacity, int max_chunks) {
    using A = Acc<T>;
    const int hw = h * w, i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= (size_t)maps * C * hw) return;
    int node, c;
    if (LAST) {
        node = i / C;
        c = i - node * C;
    } else {
        const int plane = i / hw, map = plane / C;
        node = map * hw + i - plane * hw;
        c = plane - map * C;
    }
    const int y = node % hw / w, x = node % w;  // hw is a multiple of w
    A sum = 0;
#pragma unroll
    for (int corner = 0; corner < 4; ++corner) {
        if (y < corner / 2 || x < corner % 2) continue;
        const int cell = node - corner / 2 * w - corner % 2, first = first_chunk[cell];
        const int end = first + chunks_of(count[cell], capacity);
        for (int chunk = first; chunk < end; ++chunk)
            sum += parts[LAST ? ((size_t)chunk * 4 + corner) * C + c : ((size_t)corner * C + c) * max_chunks + chunk];
    }
    grad_input[i] = narrow<T>(sum);
}

// The released code's derivative at an integer position is minus the value: its far tap drops out there. One thread per
// sample; `last` is 1 for NHWC, 0 for NCHW. Processes all maps.
template <typename T>
__global__ void __launch_bounds__(256, 2) integer_rule(
    const T* __restrict__ grad, const T* __restrict__ input, const Acc<T>* __restrict__ offset, Acc<T>* __restrict__ grad_offset,
    int maps, int M, int C, int h, int w, int kh, int kw, Acc<T> rkh, Acc<T> rkw, int last) {
    using A = Acc<T>;
    const int hw = h * w, HW = hw * kh * kw, pixel = blockIdx.x * blockDim.x + threadIdx.x;
    if (pixel >= HW) return;
    const int step = last ? C : 1, next_u = last ? 1 : hw, next_g = last ? 1 : HW;
    for (int map = blockIdx.y; map < maps; map += gridDim.y) {
        const Position<A> p = position_of(offset, map, M, pixel, h, w, kh, kw, rkh, rkw);
        const Axis<A> y = locate(p.y, h), x = locate(p.x, w);
        const bool on_row = on_integer(p.y, h, y.t), on_column = on_integer(p.x, w, x.t);
        if (!(on_row || on_column) || p.y != p.y || p.x != p.x) continue;
        const Weights<A> weight = tap_weights(y.t, x.t);
        const T* u = input + (size_t)map * C * hw + (y.cell * w + x.cell) * step;
        const T* g = grad + (size_t)map * C * HW + (size_t)pixel * step;
        const int to_right = x.far * step, to_below = y.far * w * step;
        A value = 0;
        for (int c = 0; c < C; ++c, u += next_u, g += next_g)
            value = mad(widen(*g), blend<A>(weight, widen(u[0]), widen(u[to_right]), widen(u[to_below]), widen(u[to_below + to_right])), value);
        A* rows = grad_offset + offset_plane(map, M, HW) + pixel;
        if (on_row) rows[0] = -value;
        if (on_column) rows[(size_t)M * HW] = -value;
    }
}
