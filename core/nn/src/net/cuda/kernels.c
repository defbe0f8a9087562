/* What a network does between its convolutions, an element a turn. Compiled for a GPU by NVRTC, and for the processor by the tests.
 *
 * All of it is bound by memory. Sizes are literals where a function is called, so that divisions by them are multiplications. `LAST`: channels
 * are the last axis in memory, else the one after the images. Maps are [N, C, H, W] in the order that it says. */

#ifdef __CUDACC_RTC__
#define FN static __device__ __forceinline__
#define EACH(i) for (unsigned i = blockIdx.x * blockDim.x + threadIdx.x; i < total; i += gridDim.x * blockDim.x)
#define UNROLL _Pragma("unroll")
/* What a warp shares: a thread's first turn of so many, the distance to its next, and sums and maxima of all threads. */
#define FIRST_TURN(i, turns) ((i) % 32)
#define TURNS 32
FN float sum_of_warp(float v) {
    for (int distance = 16; distance > 0; distance /= 2) v += __shfl_xor_sync(0xffffffffu, v, distance);
    return v;
}
FN float largest_of_warp(float v) {
    for (int distance = 16; distance > 0; distance /= 2) v = fmaxf(v, __shfl_xor_sync(0xffffffffu, v, distance));
    return v;
}
#else
#include <math.h>
#define FN static inline
#define EACH(i) for (unsigned i = 0; i < total; i++)
#define UNROLL
/* The first of a warp's threads does it all. */
#define FIRST_TURN(i, turns) ((i) % 32 ? (turns) : 0)
#define TURNS 1
#define sum_of_warp(v) (v)
#define largest_of_warp(v) (v)
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

/* The largest absolute value of an image's map, with bias and behind `relu` where there are such: a warp an image. */
FN void peak(unsigned i, const float *from, const float *b, float *to, unsigned C, unsigned H, unsigned W, int biased, int relu) {
    float best = 0.f;
    for (unsigned k = FIRST_TURN(i, C * H * W); k < C * H * W; k += TURNS) {
        float v = from[i / 32 * (C * H * W) + k] + (biased ? b[CHANNEL(k, C, H, W)] : 0.f);
        best = fmaxf(best, relu ? v : fabsf(v));
    }
    best = largest_of_warp(best);
    if (i % 32 == 0) to[i / 32] = best;
}

/* Elements so near to the largest of a block, in parts of the image's peak, count as equal to it: libraries sum in another order at every place,
 * and where exact sums are equal, as on a plain background, the first has the gradient. */
#define TIE 2e-6f

/* A maximum, or no number where the sum of what it is the maximum of is none. */
#define OR_NONE(best, sum) ((sum) == (sum) ? (best) : (sum))

/* Behind a convolution: the largest of every 2 x 2 places, and which it was; 4 where `relu` leaves nothing. Sizes are those of the target,
 * `RH` and `RW` those of the convolution's result. */
FN void bias_pool(unsigned i, const float *from, const float *b, const float *peaks, float *to, byte *which, unsigned C, unsigned H, unsigned W,
                  unsigned RH, unsigned RW, int relu) {
    PLACE(i, C, H, W);
    float block[4];
    UNROLL
    for (unsigned k = 0; k < 4; k++) block[k] = from[AT(C, RH, RW, n, c, 2 * y + k / 2, 2 * x + k % 2)];
    float best = fmaxf(fmaxf(block[0], block[1]), fmaxf(block[2], block[3]));
    float least = best - TIE * peaks[n];
    best = OR_NONE(best, (block[0] + block[1]) + (block[2] + block[3]));
    byte index = block[0] >= least ? 0 : block[1] >= least ? 1 : block[2] >= least ? 2 : 3;
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

/* A sum of maps whose convolutions have left their bias to it. */
FN void add_bias(unsigned i, const float *a, const float *b, float *to, const float *of_a, unsigned C, unsigned H, unsigned W) {
    to[i] = a[i] + b[i] + of_a[CHANNEL(i, C, H, W)];
}

FN void add_biases(unsigned i, const float *a, const float *b, float *to, const float *of_a, const float *of_b, unsigned C, unsigned H, unsigned W) {
    unsigned c = CHANNEL(i, C, H, W);
    to[i] = a[i] + b[i] + of_a[c] + of_b[c];
}

/* The same, and a norm of the sum. */
FN void affine_of_sum(unsigned i, float sum, const float *scale, const float *shift, float *norm, unsigned c, int relu) {
    float v = sum * scale[c] + shift[c];
    norm[i] = relu ? POSITIVE(v) : v;
}

FN void add_affine(unsigned i, const float *a, const float *b, float *to, const float *scale, const float *shift, float *norm, unsigned C,
                   unsigned H, unsigned W, int relu) {
    add(i, a, b, to);
    affine_of_sum(i, to[i], scale, shift, norm, CHANNEL(i, C, H, W), relu);
}

FN void add_bias_affine(unsigned i, const float *a, const float *b, float *to, const float *of_a, const float *scale, const float *shift,
                        float *norm, unsigned C, unsigned H, unsigned W, int relu) {
    add_bias(i, a, b, to, of_a, C, H, W);
    affine_of_sum(i, to[i], scale, shift, norm, CHANNEL(i, C, H, W), relu);
}

FN void add_biases_affine(unsigned i, const float *a, const float *b, float *to, const float *of_a, const float *of_b, const float *scale,
                          const float *shift, float *norm, unsigned C, unsigned H, unsigned W, int relu) {
    add_biases(i, a, b, to, of_a, of_b, C, H, W);
    affine_of_sum(i, to[i], scale, shift, norm, CHANNEL(i, C, H, W), relu);
}

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
FN void max_pool(unsigned i, const float *from, const float *peaks, float *to, byte *which, unsigned C, unsigned H, unsigned W, unsigned SH,
                 unsigned SW, unsigned k) {
    PLACE(i, C, H, W);
    float best = from[AT(C, SH, SW, n, c, y * k, x * k)];
    float sum = best;
    for (unsigned j = 1; j < k * k; j++) {
        float v = from[AT(C, SH, SW, n, c, y * k + j / k, x * k + j % k)];
        best = fmaxf(best, v);
        sum += v;
    }
    float least = best - TIE * peaks[n];
    best = OR_NONE(best, sum);
    unsigned index = 0;
    while (index + 1 < k * k && !(from[AT(C, SH, SW, n, c, y * k + index / k, x * k + index % k)] >= least)) index++;
    to[i] = best;
    which[i] = (byte)index;
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

/* Places that a convolution of one tap at a stride reads; sizes of the source and the target. */
FN void take_every(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned TH, unsigned TW, unsigned stride) {
    PLACE(i, C, TH, TW);
    to[i] = from[AT(C, H, W, n, c, y * stride, x * stride)];
}

FN void spread(unsigned i, const float *from, float *to, unsigned C, unsigned H, unsigned W, unsigned TH, unsigned TW, unsigned stride, int add) {
    PLACE(i, C, H, W);
    int read = y % stride == 0 && x % stride == 0 && y / stride < TH && x / stride < TW;
    if (read) give(to + i, from[AT(C, TH, TW, n, c, y / stride, x / stride)], add);
    else if (!add) to[i] = 0.f;
}

/* Convolutions of stride 1 from few channels F to many M, and from many to few, for which tiles of matrices are mostly empty. Bound by memory:
 * a turn makes 2 x 2 outputs. Weights are [KH][KW][F][M]; `flip`: turned by half a turn, as on the way back. Sizes are those of the source and
 * of the target. */
#define TAP(r, s, KH, KW, flip) ((flip) ? ((KH) - 1 - (r)) * (KW) + (KW) - 1 - (s) : (r) * (KW) + (s))
#define PATCH 64
#define GROUP 8

/* The places around 2 x 2 outputs, of few channels. */
FN void patch_of(const float *from, float *patch, unsigned F, unsigned H, unsigned W, unsigned n, int y, int x, unsigned KH, unsigned KW) {
    UNROLL
    for (unsigned f = 0; f < F; f++) {
        UNROLL
        for (unsigned r = 0; r <= KH; r++) {
            UNROLL
            for (unsigned s = 0; s <= KW; s++) {
                int a = y + (int)r, b = x + (int)s;
                int inside = a >= 0 && a < (int)H && b >= 0 && b < (int)W;
                patch[(f * (KH + 1) + r) * (KW + 1) + s] = inside ? from[AT(F, H, W, n, f, (unsigned)a, (unsigned)b)] : 0.f;
            }
        }
    }
}

/* 2 x 2 outputs of channel m. */
FN void block_of(const float *patch, const float *w, float *sums, unsigned F, unsigned M, unsigned m, unsigned KH, unsigned KW, int flip) {
    sums[0] = sums[1] = sums[2] = sums[3] = 0.f;
    UNROLL
    for (unsigned r = 0; r < KH; r++) {
        UNROLL
        for (unsigned s = 0; s < KW; s++) {
            UNROLL
            for (unsigned f = 0; f < F; f++) {
                float v = w[(TAP(r, s, KH, KW, flip) * F + f) * M + m];
                UNROLL
                for (unsigned k = 0; k < 4; k++) sums[k] += v * patch[(f * (KH + 1) + r + k / 2) * (KW + 1) + s + k % 2];
            }
        }
    }
}

/* A block of outputs and, with channels first, a group of channels: a turn's first place, and its channels from m to end. */
#define FEW_TO_MANY(i, M, OH, OW)                                                                                    \
    unsigned BH = ((OH) + 1) / 2, BW = ((OW) + 1) / 2, GROUPS = LAST ? (M) : ((M) + GROUP - 1) / GROUP;               \
    unsigned n = (i) / (GROUPS * BH * BW);                                                                           \
    unsigned g = LAST ? (i) % GROUPS : (i) / (BH * BW) % GROUPS;                                                      \
    unsigned y = LAST ? (i) / (GROUPS * BW) % BH : (i) / BW % BH, x = LAST ? (i) / GROUPS % BW : (i) % BW;            \
    float patch[PATCH], sums[4]

#define CHANNELS(m, M)                                 \
    UNROLL                                             \
    for (unsigned j = 0; j < (LAST ? 1 : GROUP); j++)  \
        for (unsigned m = LAST ? g : g * GROUP + j, once = 1; once && m < (M); once = 0)

/* With bias, or without: a pointer to it is not read then. */
FN void few_to_many(unsigned i, const float *from, const float *w, const float *b, float *to, unsigned F, unsigned H, unsigned W, unsigned M,
                    unsigned OH, unsigned OW, unsigned KH, unsigned KW, int top, int left, int flip, int biased, int relu, int add) {
    FEW_TO_MANY(i, M, OH, OW);
    patch_of(from, patch, F, H, W, n, 2 * (int)y - top, 2 * (int)x - left, KH, KW);
    CHANNELS(m, M) {
        block_of(patch, w, sums, F, M, m, KH, KW, flip);
        float shift = biased ? b[m] : 0.f;
        UNROLL
        for (unsigned k = 0; k < 4; k++) {
            unsigned r = 2 * y + k / 2, s = 2 * x + k % 2;
            float v = sums[k] + shift;
            if (r < OH && s < OW) give(to + AT(M, OH, OW, n, m, r, s), relu ? POSITIVE(v) : v, add);
        }
    }
}

/* The largest of every 2 x 2 outputs, as `bias_pool` has it. */
FN void few_to_many_pool(unsigned i, const float *from, const float *w, const float *b, float *to, byte *which, unsigned F, unsigned H, unsigned W,
                         unsigned M, unsigned OH, unsigned OW, unsigned KH, unsigned KW, int top, int left, int relu) {
    FEW_TO_MANY(i, M, OH, OW);
    if (y >= OH / 2 || x >= OW / 2) return;
    patch_of(from, patch, F, H, W, n, 2 * (int)y - top, 2 * (int)x - left, KH, KW);
    CHANNELS(m, M) {
        block_of(patch, w, sums, F, M, m, KH, KW, 0);
        float best = sums[0];
        byte index = 0;
        UNROLL
        for (unsigned k = 1; k < 4; k++) {
            if (sums[k] > best) {
                best = sums[k];
                index = (byte)k;
            }
        }
        best = OR_NONE(best, (sums[0] + sums[1]) + (sums[2] + sums[3])) + b[m];
        if (relu && best <= 0.f) {
            best = 0.f;
            index = 4;
        }
        unsigned at = AT(M, OH / 2, OW / 2, n, m, y, x);
        to[at] = best;
        which[at] = index;
    }
}

/* The way back from few channels to an upsampled map, and through it, as `upsample_relu_back` has it. */
FN void few_to_many_sum(unsigned i, const float *from, const float *w, const float *value, float *to, unsigned F, unsigned H, unsigned W, unsigned M,
                        unsigned OH, unsigned OW, unsigned KH, unsigned KW, int top, int left) {
    FEW_TO_MANY(i, M, OH, OW);
    patch_of(from, patch, F, H, W, n, 2 * (int)y - top, 2 * (int)x - left, KH, KW);
    CHANNELS(m, M) {
        block_of(patch, w, sums, F, M, m, KH, KW, 1);
        float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
        to[AT(M, OH / 2, OW / 2, n, m, y, x)] = value[AT(M, OH, OW, n, m, 2 * y, 2 * x)] > 0.f ? sum : 0.f;
    }
}

/* From many channels to few. `mask`: only what comes from values above 0 counts. With channels last a warp's threads share a block of outputs, a
 * channel each, and are summed in a fixed order. */
FN void many_to_few(unsigned i, const float *from, const float *value, const float *w, const float *b, float *to, unsigned M, unsigned H, unsigned W,
                    unsigned F, unsigned OH, unsigned OW, unsigned KH, unsigned KW, int top, int left, int flip, int mask, int biased, int add) {
    unsigned BH = (OH + 1) / 2, BW = (OW + 1) / 2, block = LAST ? i / 32 : i;
    unsigned x = block % BW, y = block / BW % BH, n = block / (BW * BH);
    float sums[16];
    UNROLL
    for (unsigned k = 0; k < 4 * F; k++) sums[k] = 0.f;
    for (unsigned m = LAST ? FIRST_TURN(i, M) : 0; m < M; m += LAST ? TURNS : 1) {
        UNROLL
        for (unsigned r = 0; r <= KH; r++) {
            UNROLL
            for (unsigned s = 0; s <= KW; s++) {
                int a = 2 * (int)y - top + (int)r, c = 2 * (int)x - left + (int)s;
                float v = 0.f;
                if (a >= 0 && a < (int)H && c >= 0 && c < (int)W) {
                    unsigned at = AT(M, H, W, n, m, (unsigned)a, (unsigned)c);
                    v = !mask || value[at] > 0.f ? from[at] : 0.f;
                }
                UNROLL
                for (unsigned k = 0; k < 4; k++) {
                    int p = (int)r - (int)(k / 2), q = (int)s - (int)(k % 2);
                    if (p >= 0 && p < (int)KH && q >= 0 && q < (int)KW) {
                        UNROLL
                        for (unsigned f = 0; f < F; f++) sums[f * 4 + k] += v * w[(TAP(p, q, (int)KH, (int)KW, flip) * F + f) * M + m];
                    }
                }
            }
        }
    }
    UNROLL
    for (unsigned k = 0; k < 4 * F; k++) sums[k] = LAST ? sum_of_warp(sums[k]) : sums[k];
    if (LAST && i % 32) return;
    UNROLL
    for (unsigned k = 0; k < 4 * F; k++) {
        unsigned f = k / 4, r = 2 * y + k % 4 / 2, s = 2 * x + k % 2;
        if (r < OH && s < OW) give(to + AT(F, OH, OW, n, f, r, s), sums[k] + (biased ? b[f] : 0.f), add);
    }
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
