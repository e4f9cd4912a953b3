/* SPDX-License-Identifier: Apache-2.0 */
/*
 * dispatch.c - which kernels run.  The choice is made at first use and is the codec's only global
 * state: one pointer, written with the same value by whoever comes first, or by codec_isa_set.
 */
#include "gpu/codec/codec.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>

#include "gpu/codec/internal.h"

static const struct codec_kernels *const kernels_all[] = {
#if defined(__x86_64__)
	&codec_kernels_avx512,
	&codec_kernels_avx512_loads,
	&codec_kernels_avx2,
#endif
	&codec_kernels_scalar,
};
#define KERNELS_COUNT (sizeof(kernels_all) / sizeof(kernels_all[0]))

/* Relaxed is enough: what it points to is constant. */
static _Atomic(const struct codec_kernels *) kernels_now;

static const struct codec_kernels *kernels_best(void)
{
#if defined(__x86_64__)
	/* Where gathers are slow: numbers are in cpu_avx512.inc. */
	__builtin_cpu_init();
	if (__builtin_cpu_is("amd") && codec_kernels_avx512_loads.supported())
		return &codec_kernels_avx512_loads;
#endif
	for (size_t i = 0; i < KERNELS_COUNT; i++)
		if (kernels_all[i]->supported())
			return kernels_all[i];
	return &codec_kernels_scalar;
}

const struct codec_kernels *codec_kernels_get(void)
{
	const struct codec_kernels *k = atomic_load_explicit(&kernels_now, memory_order_relaxed);

	if (!k) {
		k = kernels_best();
		atomic_store_explicit(&kernels_now, k, memory_order_relaxed);
	}
	return k;
}

const char *codec_isa_name(void)
{
	return codec_kernels_get()->name;
}

int codec_isa_set(const char *name)
{
	const struct codec_kernels *k = name ? NULL : kernels_best();

	for (size_t i = 0; name && i < KERNELS_COUNT; i++)
		if (strcmp(kernels_all[i]->name, name) == 0 && kernels_all[i]->supported())
			k = kernels_all[i];
	if (!k)
		return -ENOTSUP;
	atomic_store_explicit(&kernels_now, k, memory_order_relaxed);
	return 0;
}

const char *codec_speculator_name(uint8_t speculator)
{
	static const char *const names[CODEC_SPEC_COUNT] = { "raw", "generic", "channel", "layer",
							     "model" };

	return speculator < CODEC_SPEC_COUNT ? names[speculator] : "unknown";
}

const char *codec_refusal_name(enum codec_refusal refusal)
{
	static const char *const names[CODEC_REFUSAL_COUNT] = {
		"none",
		"another version",
		"another geometry",
		"another profile",
		"its model is not loaded",
		"its prefix is missing",
		"its prefix or its model's arithmetic is another",
	};

	return refusal < CODEC_REFUSAL_COUNT ? names[refusal] : "unknown";
}
