/* What a network does between its convolutions, an element a turn. Compiled for a GPU by NVRTC, and for the processor by the tests.
 *
 * All of it is bound by memory. Sizes are literals where a function is called, so that divisions by them are multiplications. `LAST`: channels
 * are the last axis in memory, else the one after the images. Maps are [N, C, H, W] in the order that it says. */

#ifdef __CUDACC_RTC__
#define FN static __device__ __forceinline__
#define EACH(i) for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x)
#else
#include <math.h>
#define FN static inline
#define EACH(i) for (unsigned i = 0; i < total; i++)
#endif

typedef unsigned char byte;

/* Where an element of a map lies. */
#define AT(C, H, W, n, c, y, x) (LAST ? (((n) * (H) + (y)) * (W) + (x)) * (C) + (c) : (((n) * (C) + (c)) * (H) + (y)) * (W) + (x))

/* An element's image, channel, row and column. */
#define PLACE(i, C, H, W)                                                        \
    unsigned n = (i) / ((C) * (H) * (W));                                        \
    unsigned c = LAST ? (i) % (C) : (i) / ((H) * (W)) % (C);                     \
    unsigned y = LAST ? (i) / ((W) * (C)) % (H) : (i) / (W) % (H);               \
    unsigned x = LAST ? (i) / (C) % (W) : (i) % (W);                             \
    (void)n, (void)c, (void)y, (void)x

/* Its channel alone. */
#define CHANNEL(i, C, H, W) (LAST ? (i) % (C) : (i) / ((H) * (W)) % (C))

/* What no value above 0 is left by `relu` is 0; what is no number stays so. */
#define POSITIVE(v) ((v) <= 0.f ? 0.f : (v))

FN void give(float *to, float v, int add) { *to = add ? *to + v : v; }

/* Behind a convolution, in place. */
FN void bias(unsigned i, float *y, const float *b, unsigned C, unsigned H, unsigned W, int relu) {
    float v = y[i] + b[CHANNEL(i, C, H, W)];
    y[i] = relu ? POSITIVE(v) : v;
}

/* Behind a convolution: the largest of every 2 x 2 places, and which it was; 4 where `relu` leaves nothing. Sizes are those of the target,
 * `RH` and `RW` those of the convolution's result. */
FN void bias_pool(unsigned i, const float *from, const float *b, float *to, byte *which, unsigned C, unsigned H, unsigned W, unsigned RH,
                  unsigned RW, int relu) {
    PLACE(i, C, H, W);
    float best = from[AT(C, RH, RW, n, c, 2 * y, 2 * x)];
    byte index = 0;
    for (unsigned k = 1; k < 4; k++) {
        float v = from[AT(C, RH, RW, n, c, 2 * y + k / 2, 2 * x + k % 2)];
        if (v > best) {
            best = v;
            index = (byte)k;
        }
    }
    best += b[c];
    if (relu && best <= 0.f) {
        best = 0.f;
        index = 4;
    }
    to[i] = best;
    which[i] = index;
}

/* Its way back: an element of the convolution's result. */
FN void pool_back(unsigned i, const float *from, const byte *which, float *to, unsigned C, unsigned H, unsigned W, unsigned RH, unsigned RW) {
    PLACE(i, C, RH, RW);
    float v = 0.f;
    if (y / 2 < H && x / 2 < W) {
        unsigned at = AT(C, H, W, n, c, y / 2, x / 2);
        if (which[at] == y % 2 * 2 + x % 2) v = from[at];
    }
    to[i] = v;
}

/* Behind a convolution: `relu`, then every element four times. */
FN void bias_upsample(unsigned i, const float *from, const float *b, float *to, unsigned C, unsigned H, unsigned W) {
    PLACE(i, C, H, W);
    float v = from[AT(C, H / 2, W / 2, n, c, y / 2, x / 2)] + b[c];
    to[i] = POSITIVE(v);
}

/* Its way back: an element of the convolution's result. Sizes are those of the upsampled map. */
FN void upsample_relu_back(unsigned i, const float *from, const float *value, float *to, unsigned C, unsigned H, unsigned W) {
    PLACE(i, C, H / 2, W / 2);
    float sum = 0.f;
    for (unsigned k = 0; k < 4; k++) sum += from[AT(C, H, W, n, c, 2 * y + k / 2, 2 * x + k % 2)];
    to[i] = value[AT(C, H, W, n, c, 2 * y, 2 * x)] > 0.f ? sum : 0.f;
}

/* In place: the gradient where `relu` let something through. */
FN void relu_back_here(unsigned i, float *slope, const float *value) { slope[i] = value[i] > 0.f ? slope[i] : 0.f; }

FN void relu(unsigned i, const float *from, float *to) { to[i] = POSITIVE(from[i]); }

FN void relu_back(unsigned i, const float *from, const float *value, float *to, int add) { give(to + i, value[i] > 0.f ? from[i] : 0.f, add); }

FN void add(unsigned i, const float *a, const float *b, float *to) { to[i] = a[i] + b[i]; }

FN void copy(unsigned i, const float *from, float *to, int add) { give(to + i, from[i], add); }

/* `scale[c] x + shift[c]`, or the positive part of it. */
FN void affine(unsigned i, const float *from, const float *scale, const float *shift, float *to, unsigned C, unsigned H, unsigned W, int relu) {
    unsigned c = CHANNEL(i, C, H, W);
    float v = from[i] * scale[c] + shift[c];
    to[i] = relu ? POSITIVE(v) : v;
}

FN void affine_back(unsigned i, const float *from, const float *scale, const float *value, float *to, unsigned C, unsigned H, unsigned W,
                    int relu, int add) {
    float v = relu && !(value[i] > 0.f) ? 0.f : from[i];
    give(to + i, scale[CHANNEL(i, C, H, W)] * v, add);
}

FN void sigmoid(unsigned i, const float *from, float *to) { to[i] = 1.f / (1.f + expf(-from[i])); }

FN void sigmoid_back(unsigned i, const float *from, const float *value, float *to, int add) {
    give(to + i, from[i] * value[i] * (1.f - value[i]), add);
}

/* Channels `first` to `first + C` of a map of `K`, from a map of `C`. */
FN void concat(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned K, unsigned first) {
    PLACE(i, C, H, W);
    to[AT(K, H, W, n, first + c, y, x)] = from[i];
}

FN void concat_back(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned K, unsigned first, int add) {
    PLACE(i, C, H, W);
    give(to + i, from[AT(K, H, W, n, first + c, y, x)], add);
}

/* The first of the largest of every k x k places, and which it was; sizes of the target, and of the source. */
FN void max_pool(unsigned i, const float *from, float *to, byte *which, unsigned C, unsigned H, unsigned W, unsigned SH, unsigned SW, unsigned k) {
    PLACE(i, C, H, W);
    float best = from[AT(C, SH, SW, n, c, y * k, x * k)];
    byte index = 0;
    for (unsigned j = 1; j < k * k; j++) {
        float v = from[AT(C, SH, SW, n, c, y * k + j / k, x * k + j % k)];
        if (v > best) {
            best = v;
            index = (byte)j;
        }
    }
    to[i] = best;
    which[i] = index;
}

FN void max_pool_back(unsigned i, const float *from, const byte *which, float *to, unsigned C, unsigned H, unsigned W, unsigned SH, unsigned SW,
                      unsigned k, int add) {
    PLACE(i, C, SH, SW);
    float v = 0.f;
    if (y / k < H && x / k < W) {
        unsigned at = AT(C, H, W, n, c, y / k, x / k);
        if (which[at] == y % k * k + x % k) v = from[at];
    }
    give(to + i, v, add);
}

FN void average_pool(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned SH, unsigned SW, unsigned kh,
                     unsigned kw) {
    PLACE(i, C, H, W);
    float sum = 0.f;
    for (unsigned j = 0; j < kh * kw; j++) sum += from[AT(C, SH, SW, n, c, y * kh + j / kw, x * kw + j % kw)];
    to[i] = sum / (float)(kh * kw);
}

FN void average_pool_back(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned SH, unsigned SW, unsigned kh,
                          unsigned kw, int add) {
    PLACE(i, C, SH, SW);
    int inside = y / kh < H && x / kw < W;
    give(to + i, inside ? from[AT(C, H, W, n, c, y / kh, x / kw)] / (float)(kh * kw) : 0.f, add);
}

/* Every element k x k times; sizes of the target. */
FN void upsample(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned k) {
    PLACE(i, C, H, W);
    to[i] = from[AT(C, H / k, W / k, n, c, y / k, x / k)];
}

FN void upsample_back(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned k, int add) {
    PLACE(i, C, H / k, W / k);
    float sum = 0.f;
    for (unsigned j = 0; j < k * k; j++) sum += from[AT(C, H, W, n, c, y * k + j / k, x * k + j % k)];
    give(to + i, sum, add);
}

/* Zeros around a map of H x W; sizes of the source and the target. */
FN void pad(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned TH, unsigned TW, unsigned top, unsigned left) {
    PLACE(i, C, TH, TW);
    int inside = y >= top && y < top + H && x >= left && x < left + W;
    to[i] = inside ? from[AT(C, H, W, n, c, y - top, x - left)] : 0.f;
}

/* The map without them. */
FN void crop(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned TH, unsigned TW, unsigned top, unsigned left,
             int add) {
    PLACE(i, C, H, W);
    give(to + i, from[AT(C, TH, TW, n, c, y + top, x + left)], add);
}

/* From the order of images outside, [N, C, H, W], to the order in memory, and back. */
FN void take_in(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W) {
    PLACE(i, C, H, W);
    to[i] = from[((n * C + c) * H + y) * W + x];
}

FN void give_out(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, int add) {
    unsigned n = i / (C * H * W), c = i / (H * W) % C, y = i / W % H, x = i % W;
    give(to + i, from[AT(C, H, W, n, c, y, x)], add);
}

FN void take_back(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, int add) {
    PLACE(i, C, H, W);
    give(to + i, from[((n * C + c) * H + y) * W + x], add);
}
