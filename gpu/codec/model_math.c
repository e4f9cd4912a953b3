/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_math.c - exponentials, logarithms and sines from series, for tables only.
 */
#include "gpu/codec/model_math.h"

#include <assert.h>

#define LN2 0.69314718055994530942
#define PI_2_HIGH \
	1.5707963267341256 /* the first 33 bits of pi / 2: its products with counts are exact */
#define PI_2_LOW 6.0771005065061922e-11 /* the rest */
#define PI_2 1.5707963267948966

static int64_t round_half_up(double x) /* |x| < 2^53 */
{
	double y = x + 0.5;
	int64_t i = (int64_t)y;

	return (double)i > y ? i - 1 : i;
}

/* e^x for |x| < 700: x = n ln 2 + r, then the series of r / 2^4, squared four times. */
static double exp_of(double x)
{
	int64_t n = round_half_up(x / LN2);
	double r = (x - (double)n * LN2) / 16, sum = 1;

	for (int i = 12; i >= 1; i--)
		sum = 1 + sum * r / i;
	for (int i = 0; i < 4; i++)
		sum *= sum;
	for (; n > 0; n--)
		sum *= 2;
	for (; n < 0; n++)
		sum /= 2;
	return sum;
}

/* ln x for x >= 1, by atanh's series on a mantissa near 1. */
static double log_of(double x)
{
	double n = 0, z, sum = 0, power;

	for (; x > 1.5; n++)
		x /= 2;
	z = (x - 1) / (x + 1);
	power = z;
	for (int i = 1; i < 60; i += 2) {
		sum += power / i;
		power *= z * z;
	}
	return n * LN2 + 2 * sum;
}

/* Of |x| <= pi / 4 and a bit. */
static double sin_series(double x)
{
	double sum = 1;

	for (int i = 20; i >= 2; i -= 2)
		sum = 1 - sum * x * x / (i * (i + 1));
	return x * sum;
}

static double cos_series(double x)
{
	double sum = 1;

	for (int i = 20; i >= 2; i -= 2)
		sum = 1 - sum * x * x / ((i - 1) * i);
	return sum;
}

void model_tables_fill(struct model_tables *t)
{
	for (uint32_t i = 0; i < MODEL_EXP_ENTRIES; i++)
		t->exp[i] = (uint16_t)round_half_up(((1 << MODEL_P_BITS) - 1) *
						    exp_of(-LN2 * i / MODEL_EXP_ENTRIES));
	t->exp[MODEL_EXP_ENTRIES] = 0;
	for (uint32_t i = 0; i < MODEL_SIG_ENTRIES; i++) {
		double x = (double)i / (1 << MODEL_SIG_STEP);

		t->sigmoid[i] = (int32_t)round_half_up((1 << MODEL_SIG_FRAC) / (1 + exp_of(-x)));
	}
}

void model_rope_frequencies(double theta, uint32_t half, double *ret)
{
	double l = log_of(theta);

	assert(theta >= 1);
	for (uint32_t i = 0; i < half; i++)
		ret[i] = exp_of(-l * i / half);
}

/* Eight bits of mantissa, ties away from zero. */
static double to_bf16(double x)
{
	double a = x < 0 ? -x : x, unit = 1;

	if (a < 1e-30)
		return 0;
	while (a < unit * 128)
		unit /= 2;
	while (a >= unit * 256)
		unit *= 2;
	a = (double)round_half_up(a / unit) * unit;
	return x < 0 ? -a : a;
}

void model_rope_row(const double *frequencies, uint32_t half, uint32_t position, bool coarse,
		    int32_t *ret)
{
	for (uint32_t i = 0; i < half; i++) {
		double angle = position * frequencies[i];
		int64_t n = round_half_up(angle / PI_2);
		double r = (angle - (double)n * PI_2_HIGH) - (double)n * PI_2_LOW;
		double s = sin_series(r), c = cos_series(r), t;

		if (n & 1) {
			t = s;
			s = c;
			c = -t;
		}
		if (n & 2) {
			s = -s;
			c = -c;
		}
		if (coarse) {
			s = to_bf16(s);
			c = to_bf16(c);
		}
		ret[2u * i] = (int32_t)round_half_up(c * (1 << MODEL_ROPE_FRAC));
		ret[2u * i + 1u] = (int32_t)round_half_up(s * (1 << MODEL_ROPE_FRAC));
	}
}
