// Runs the kernels of a CUDA source on a processor: each thread of a block is a coroutine of its own.
//
// Threads run in turn, each until it waits for others: at __syncthreads or in a shuffle. `backwards` turns the order
// round, so that a missing barrier shows as another result. A barrier that some thread never reaches ends the launch
// with an error, and so does a shuffle that a lane of the warp leaves out.

#include <math.h>
#include <stdint.h>
#include <string.h>
#include <ucontext.h>

#include <functional>
#include <memory>
#include <vector>

#define __global__
#define __device__ static
#define __shared__ static
#define __launch_bounds__(most)
#define __restrict__

struct float2 {
    float x, y;
};
struct Index {
    int x, y, z;
};

static Index threadIdx, blockIdx, blockDim, gridDim;

template <typename T>
T min(T a, T b) {
    return a < b ? a : b;
}
static float __uint_as_float(unsigned int bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}
static unsigned int __float_as_uint(float value) {
    unsigned int bits;
    memcpy(&bits, &value, 4);
    return bits;
}
// Not of that name: the C library has an __expf too.
#define __expf expf
static float from_half(unsigned short bits) {
    _Float16 value;
    memcpy(&value, &bits, 2);
    return value;
}
static unsigned short to_half(float value) {
    const _Float16 rounded = value;
    unsigned short bits;
    memcpy(&bits, &rounded, 2);
    return bits;
}

struct Thread {
    ucontext_t context;
    std::unique_ptr<char[]> stack;
    bool ended = false;
    int barriers = 0, shuffles = 0;
    float given[2];  // by the parity of the shuffle: a neighbour may be one ahead
};

static std::vector<Thread> threads;
static ucontext_t scheduler;
static std::function<void()> kernel;
static int now;
static bool stuck;

static void wait() { swapcontext(&threads[now].context, &scheduler); }

template <typename Ready>
static void wait_until(Ready ready) {
    while (!ready()) wait();
}

static void __syncthreads() {
    const int mine = ++threads[now].barriers;
    wait_until([&] {
        for (const Thread &thread : threads) {
            if (thread.barriers < mine) return false;
        }
        return true;
    });
}

static float __shfl_xor_sync(unsigned int, float value, int distance) {
    Thread &own = threads[now];
    const int mine = ++own.shuffles, first = now / 32 * 32;
    own.given[mine % 2] = value;
    wait_until([&] {
        for (int lane = first; lane < first + 32; lane++) {
            if (threads[lane].shuffles < mine) return false;
        }
        return true;
    });
    return threads[now ^ distance].given[mine % 2];
}

static void run_thread() {
    kernel();
    threads[now].ended = true;
    wait();
}

// Returns whether all threads came to their end.
static bool run_block(int count, bool backwards) {
    constexpr int STACK = 1 << 16;
    if ((int)threads.size() != count) threads = std::vector<Thread>(count);
    for (Thread &thread : threads) {
        if (!thread.stack) thread.stack.reset(new char[STACK]);
        thread.ended = false;
        thread.barriers = thread.shuffles = 0;
        getcontext(&thread.context);
        thread.context.uc_stack.ss_sp = thread.stack.get();
        thread.context.uc_stack.ss_size = STACK;
        makecontext(&thread.context, run_thread, 0);
    }
    for (int left = count, idle = 0; left > 0; idle++) {
        if (idle > 1000) return false;
        for (int i = 0; i < count; i++) {
            now = backwards ? count - 1 - i : i;
            if (threads[now].ended) continue;
            const int before = threads[now].barriers + threads[now].shuffles;
            threadIdx = {now, 0, 0};
            swapcontext(&scheduler, &threads[now].context);
            if (threads[now].ended) left--;
            if (threads[now].ended || threads[now].barriers + threads[now].shuffles != before) idle = 0;
        }
    }
    return true;
}

static bool launch(const int *grid, int block, bool backwards, std::function<void()> call) {
    kernel = call;
    gridDim = {grid[0], grid[1], 1};
    blockDim = {block, 1, 1};
    for (int y = 0; y < grid[1]; y++) {
        for (int x = 0; x < grid[0]; x++) {
            blockIdx = {x, y, 0};
            if (!run_block(block, backwards)) return false;
        }
    }
    return true;
}

// A kernel's arguments are words of eight bytes, each a pointer, an integer or a float.
template <typename T>
static T argument(const void *word) {
    T value;
    memcpy(&value, word, sizeof value);
    return value;
}

template <typename... Of, size_t... I>
static bool launch_words(void (*function)(Of...), const int *grid, int block, bool backwards, const int64_t *words,
                         std::index_sequence<I...>) {
    return launch(grid, block, backwards, [=] { function(argument<Of>(words + I)...); });
}

// Declares a function `run_NAME` for a kernel.
#define RUNS(name)                                                                                   \
    extern "C" bool run_##name(const int *grid, int block, bool backwards, const int64_t *words) {   \
        return launch_arguments(name, grid, block, backwards, words);                                \
    }

template <typename... Of>
static bool launch_arguments(void (*function)(Of...), const int *grid, int block, bool backwards,
                             const int64_t *words) {
    return launch_words(function, grid, block, backwards, words, std::index_sequence_for<Of...>());
}
