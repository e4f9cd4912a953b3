/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_fit.h - profiles for the benchmarks: fitted on blocks of a dump, or read from a file.  Errors go to
 * stderr, a line each.
 */
#ifndef SKVCD_TOOLS_BENCH_FIT_H
#define SKVCD_TOOLS_BENCH_FIT_H

#include <stdbool.h>
#include <stdint.h>

#include "tools/bench_kv.h"

/* Statistics of `channel` on the first blocks of a dump.  0 or -errno. */
int bench_fit_channel(const struct kv_dump *d, uint32_t blocks, struct codec_profile **ret);
/* base, with maps fitted on the same blocks. */
int bench_fit_layer(const struct kv_dump *d, uint32_t blocks, uint32_t previous,
		    const struct codec_profile *base, struct codec_profile **ret);
/* p for the scales that another dump is stored with; frees p. */
int bench_fit_rescale(const struct kv_dump *from, const struct kv_dump *to,
		      struct codec_profile **p);

/* A profile as it lies in a file; written under another name first. */
int bench_profile_read(const struct codec_geometry *g, const char *path,
		       struct codec_profile **ret);
int bench_profile_write(const struct codec_profile *p, const char *path);

/* What `layer` takes of each segment, by its tables: adds to bits[segments].  0 or -ENOMEM. */
int bench_segment_bits(const struct codec_geometry *g, const struct codec_profile *p,
		       const uint8_t *block, uint32_t position, double *bits);

#endif
