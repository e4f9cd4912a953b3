/* SPDX-License-Identifier: Apache-2.0 */
/*
 * model_matrix.c - matrices of integers with a scale for each row.
 *
 * Quantising uses double precision quotients and rounding only, so that every machine gets the same integers.
 */
#include "gpu/codec/model_internal.h"

#include <errno.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

static void *zeros(size_t bytes)
{
	void *p = aligned_alloc(MSPEC_ALIGN, (bytes + MSPEC_ALIGN) / MSPEC_ALIGN * MSPEC_ALIGN);

	if (p)
		memset(p, 0, (bytes + MSPEC_ALIGN) / MSPEC_ALIGN * MSPEC_ALIGN);
	return p;
}

int mspec_matrix_init(struct mspec_matrix *m, uint32_t outs, uint32_t depth, bool low)
{
	*m = (struct mspec_matrix){ .outs = outs, .depth = depth };
	m->pitch = (depth + MSPEC_ALIGN - 1u) / MSPEC_ALIGN * MSPEC_ALIGN;
	m->high = zeros((size_t)outs * m->pitch);
	m->low = low ? zeros((size_t)outs * m->pitch) : NULL;
	m->mants = zeros(outs * sizeof(uint16_t));
	m->exps = zeros(outs * sizeof(int16_t));
	if (!m->high || (low && !m->low) || !m->mants || !m->exps) {
		mspec_matrix_deinit(m);
		return -ENOMEM;
	}
	return 0;
}

void mspec_matrix_deinit(struct mspec_matrix *m)
{
	free(m->high);
	free(m->low);
	free(m->mants);
	free(m->exps);
	*m = (struct mspec_matrix){ .outs = 0 };
}

int mspec_matrix_row(struct mspec_matrix *m, uint32_t out, const double *row)
{
	double max = 0, step, mant;
	int exp;

	for (uint32_t i = 0; i < m->depth; i++) {
		if (!isfinite(row[i]))
			return -EINVAL;
		max = fabs(row[i]) > max ? fabs(row[i]) : max;
	}
	if (max < 1e-30) /* a row of nothing, or of what no sum would notice */
		max = 0;
	mant = frexp(max / MODEL_Q16, &exp); /* in [0.5, 1): 16 bits of it, up */
	m->mants[out] = 0;
	m->exps[out] = 0;
	if (max > 0) {
		uint32_t bits = (uint32_t)ceil(mant * 65536);

		if (bits > 0xffff) {
			bits = 0x8000;
			exp++;
		}
		m->mants[out] = (uint16_t)bits;
		m->exps[out] = (int16_t)(exp - 16);
	}
	step = ldexp(m->mants[out], m->exps[out]);
	for (uint32_t i = 0; i < m->depth; i++) {
		int32_t q = max > 0 ? (int32_t)rint(row[i] / step) : 0;
		int32_t high = model_high(q);

		m->high[(size_t)out * m->pitch + i] = (int8_t)high;
		if (m->low)
			m->low[(size_t)out * m->pitch + i] = (int8_t)(q - 256 * high);
	}
	return 0;
}

void mspec_matrix_times(struct mspec_matrix *m, double factor)
{
	for (uint32_t o = 0; o < m->outs; o++) {
		int exp;
		double mant = frexp(m->mants[o] * factor, &exp);
		uint32_t bits = (uint32_t)rint(mant * 65536);

		if (m->mants[o] == 0)
			continue;
		if (bits > 0xffff) {
			bits = 0x8000;
			exp++;
		}
		m->mants[o] = (uint16_t)bits;
		m->exps[o] = (int16_t)(m->exps[o] + exp - 16);
	}
}

struct model_scale mspec_scale_of(double x)
{
	struct model_scale s;
	int exp;
	double mant = frexp(x, &exp);

	s.mant = (uint32_t)rint(mant * (1 << 24));
	s.exp = exp - 24;
	if (s.mant == 1u << 24) {
		s.mant >>= 1;
		s.exp++;
	}
	return s;
}
