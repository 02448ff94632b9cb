// Group norm of channels-last pictures [N, pixels, channels], with a shift of each channel before it and SiLU after it.
//
//     statistics   grid (parts, N): mean and sum of squared deviations of each group in each part of the pixels
//     normalise    grid (blocks, N): joins the parts, then (x + shift − mean) / deviation · weight + bias, then SiLU
//
// All sums are float32 and go by differences from a value of the group itself, so that no offset, however large, cancels
// what varies. They are added in one order, which depends on the picture's size alone: neither the batch nor the card
// changes a bit of them. A thread keeps its channels and walks down the pixels; neighbours read neighbouring channels.
//
// Compiled with -DFORMAT=… (below). No header is needed: a machine that runs torch need not have any.

#define HALF 0
#define BFLOAT 1
#define FLOAT 2

constexpr int WARP = 32;
constexpr int MOST_THREADS = 1024;
constexpr int MOST_GROUPS = 128;
// Channels that a thread normalises at once: 16 bytes of 16-bit numbers.
constexpr int WIDE = 8;
// Lanes that join the statistics of a group: a warp joins those of four at once.
constexpr int LANES = 8;

#ifdef __CUDACC__
__device__ float from_half(unsigned short bits) {
    float value;
    asm("cvt.f32.f16 %0, %1;" : "=f"(value) : "h"(bits));
    return value;
}

__device__ unsigned short to_half(float value) {
    unsigned short bits;
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(bits) : "f"(value));
    return bits;
}
#endif

// A Number is what lies in memory: of 16-bit formats the bits.
#if FORMAT == HALF
typedef unsigned short Number;
__device__ float load(Number number) { return from_half(number); }
__device__ Number store(float value) { return to_half(value); }
#elif FORMAT == BFLOAT
typedef unsigned short Number;
__device__ float load(Number number) { return __uint_as_float((unsigned int)number << 16); }
__device__ Number store(float value) {
    unsigned int bits = __float_as_uint(value);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return 0x7fc0;  // not a number: rounding could make it infinite
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;    // to nearest, ties to even
}
#else
typedef float Number;
__device__ float load(Number number) { return number; }
__device__ Number store(float value) { return value; }
#endif

template <int V>
struct alignas(V * sizeof(Number) < 16 ? V * sizeof(Number) : 16) Numbers {
    Number at[V];
};

// Return the sum of a value over LANES neighbouring lanes, to each of them.
__device__ float sum_of_lanes(float value) {
    for (int distance = LANES / 2; distance > 0; distance /= 2) {
        value += __shfl_xor_sync(0xffffffffu, value, distance);
    }
    return value;
}

// Join `many` samples of a group by LANES lanes. `sample(i, mean, deviations)` returns how many numbers sample i has,
// and sets their mean and their sum of squared deviations. Sample 0 has some. All lanes of a warp must call it.
template <typename Sample>
__device__ float2 joined(int many, float numbers, int lane, Sample sample) {
    float base, deviations, mean;
    sample(0, base, deviations);
    float sum = 0.0f;
#pragma unroll 4
    for (int i = lane; i < many; i += LANES) {
        const float count = sample(i, mean, deviations);
        if (count > 0.0f) sum += count * (mean - base);
    }
    const float middle = base + sum_of_lanes(sum) / numbers;
    sum = 0.0f;
#pragma unroll 4
    for (int i = lane; i < many; i += LANES) {
        const float count = sample(i, mean, deviations);
        if (count > 0.0f) sum += deviations + count * (mean - middle) * (mean - middle);
    }
    return {middle, sum_of_lanes(sum)};
}

// V: channels that a thread reads at once; they are of one group. `found` [N, groups, parts]. `shift` begins anew after
// `of_shift` numbers for each picture: 0 is the same for all.
template <int V>
__device__ void statistics(const Number *__restrict__ x, const Number *__restrict__ shift, float2 *__restrict__ found,
                           int of_shift, int pixels, int channels, int groups, int pixels_of_part) {
    __shared__ float2 own[MOST_THREADS];
    const int part = blockIdx.x, parts = gridDim.x, picture = blockIdx.y, thread = threadIdx.x;
    const int columns = channels / V, rows = blockDim.x / columns;
    const int row = thread / columns, channel = thread % columns * V;
    const int first = part * pixels_of_part, last = min(first + pixels_of_part, pixels);
    const int each = (last - first) / rows, more = (last - first) % rows;  // pixels of a row; rows with one more

    if (row < rows && first + row < last) {
        float plus[V];
        for (int i = 0; i < V; i++) plus[i] = shift ? load(shift[(long long)picture * of_shift + channel + i]) : 0.0f;
        const Number *next = x + ((long long)picture * pixels + first + row) * channels + channel;
        const long long stride = (long long)rows * channels;
        const float base = load(next[0]) + plus[0];
        float sum = 0.0f, squares = 0.0f;
#pragma unroll 8
        for (int pixel = first + row; pixel < last; pixel += rows) {
            const Numbers<V> read = *(const Numbers<V> *)next;
            next += stride;
            for (int i = 0; i < V; i++) {
                const float difference = load(read.at[i]) + plus[i] - base;
                sum += difference;
                squares += difference * difference;
            }
        }
        const float count = V * (each + (row < more));
        own[thread] = {base + sum / count, fmaxf(squares - sum * sum / count, 0.0f)};
    }
    __syncthreads();

    const int width = channels / groups / V;  // columns of a group
    const int lane = thread % LANES, teams = blockDim.x / LANES;
    // Whole warps take part, those whose team has no group left too.
    for (int team = thread / LANES; team / (WARP / LANES) * (WARP / LANES) < groups; team += teams) {
        const int group = min(team, groups - 1);
        const float2 all = joined(rows * width, (float)(last - first) * (channels / groups), lane,
                                  [&](int i, float &mean, float &deviations) {
                                      const int there = i / width;
                                      const int count = each + (there < more);
                                      if (count == 0) return 0.0f;
                                      const float2 one = own[there * columns + group * width + i % width];
                                      mean = one.x;
                                      deviations = one.y;
                                      return (float)(V * count);
                                  });
        if (lane == 0 && team < groups) found[((long long)picture * groups + group) * parts + part] = all;
    }
}

template <bool SILU>
__device__ void normalise(const Number *__restrict__ x, const Number *__restrict__ shift,
                          const Number *__restrict__ weight, const Number *__restrict__ bias,
                          const float2 *__restrict__ found, Number *__restrict__ out, int of_shift, int pixels,
                          int channels, int groups, int parts, int pixels_of_part, int pixels_of_block, float eps) {
    __shared__ float2 norms[MOST_GROUPS];  // mean and inverse deviation
    const int picture = blockIdx.y, thread = threadIdx.x;
    const int of_group = channels / groups;

    const int lane = thread % LANES, teams = blockDim.x / LANES;
    for (int team = thread / LANES; team / (WARP / LANES) * (WARP / LANES) < groups; team += teams) {
        const int group = min(team, groups - 1);
        const float2 *here = found + ((long long)picture * groups + group) * parts;
        const float numbers = (float)pixels * of_group;
        const float2 all = joined(parts, numbers, lane, [&](int i, float &mean, float &deviations) {
            mean = here[i].x;
            deviations = here[i].y;
            return (float)(min(pixels - i * pixels_of_part, pixels_of_part) * of_group);
        });
        if (lane == 0 && team < groups) norms[group] = {all.x, 1.0f / sqrtf(all.y / numbers + eps)};
    }
    __syncthreads();

    const int columns = channels / WIDE, rows = blockDim.x / columns;
    const int row = thread / columns, channel = thread % columns * WIDE;
    if (row >= rows) return;
    float middle[WIDE], scale[WIDE], plus[WIDE];
    for (int i = 0; i < WIDE; i++) {
        const float2 norm = norms[(channel + i) / of_group];
        middle[i] = norm.x - (shift ? load(shift[(long long)picture * of_shift + channel + i]) : 0.0f);
        scale[i] = norm.y * load(weight[channel + i]);
        plus[i] = load(bias[channel + i]);
    }
    const int first = blockIdx.x * pixels_of_block, last = min(first + pixels_of_block, pixels);
    const long long start = ((long long)picture * pixels + first + row) * channels + channel;
    const long long stride = (long long)rows * channels;
    const Number *next = x + start;
    Number *target = out + start;
#pragma unroll 4
    for (int pixel = first + row; pixel < last; pixel += rows) {
        Numbers<WIDE> numbers = *(const Numbers<WIDE> *)next;
        for (int i = 0; i < WIDE; i++) {
            float value = (load(numbers.at[i]) - middle[i]) * scale[i] + plus[i];
            if (SILU) value = value / (1.0f + __expf(-value));
            numbers.at[i] = store(value);
        }
        *(Numbers<WIDE> *)target = numbers;
        next += stride;
        target += stride;
    }
}

#define STATISTICS(V)                                                                                        \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS)                                               \
        statistics_##V(const Number *x, const Number *shift, float2 *found, int of_shift, int pixels,        \
                       int channels, int groups, int of_part) {                                              \
        statistics<V>(x, shift, found, of_shift, pixels, channels, groups, of_part);                         \
    }
STATISTICS(1)
STATISTICS(2)
STATISTICS(4)
STATISTICS(8)

#define NORMALISE(NAME, SILU)                                                                                \
    extern "C" __global__ void __launch_bounds__(MOST_THREADS)                                               \
        NAME(const Number *x, const Number *shift, const Number *weight, const Number *bias,                 \
             const float2 *found, Number *out, int of_shift, int pixels, int channels, int groups,           \
             int parts, int of_part, int of_block, float eps) {                                              \
        normalise<SILU>(x, shift, weight, bias, found, out, of_shift, pixels, channels, groups, parts,       \
                        of_part, of_block, eps);                                                             \
    }
NORMALISE(normalise_plain, false)
NORMALISE(normalise_silu, true)
