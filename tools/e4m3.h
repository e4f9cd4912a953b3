/* SPDX-License-Identifier: Apache-2.0 */
/*
 * e4m3.h - float to the 8-bit format of OCP (4 exponent bits, bias 7, no infinity, greatest 448):
 * rounded to nearest even, saturating.
 */
#ifndef SKVCD_TOOLS_E4M3_H
#define SKVCD_TOOLS_E4M3_H

#include <math.h>
#include <stdint.h>

#define E4M3_MAX 448.0f

static inline uint8_t e4m3_from_float(float x)
{
	uint8_t sign = signbit(x) ? 0x80 : 0;
	float a = fabsf(x), quantum;
	int e, units;

	if (isnan(x))
		return (uint8_t)(sign | 0x7f);
	if (a >= E4M3_MAX)
		return (uint8_t)(sign | 0x7e);
	e = a > 0 ? ilogbf(a) : -6;
	e = e < -6 ? -6 : e; /* below 2^-6 the steps stay the same: subnormal */
	quantum = ldexpf(1.0f, e - 3);
	units = (int)rintf(a / quantum); /* exact division; rounds to even */
	if (units == 16) {
		units = 8;
		e++;
	}
	/* units has its hidden bit, 8, unless it is subnormal: adding counts it into the exponent. */
	return (uint8_t)(sign | ((e + 6) * 8 + units));
}

#endif
