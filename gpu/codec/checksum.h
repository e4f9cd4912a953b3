/* SPDX-License-Identifier: Apache-2.0 */
/*
 * checksum.h - the checksum of a block, a tree of XXH3-64 that format.h defines: leaves segment by
 * segment, then the root.  The leaves gather in the workspace, in the order of the segments.
 *
 * One thread's workspace; knows nothing of chunks or methods.
 */
#ifndef SKVCD_GPU_CODEC_CHECKSUM_H
#define SKVCD_GPU_CODEC_CHECKSUM_H

#include <stddef.h>
#include <stdint.h>

struct codec_geometry;
struct codec_workspace;

#define CHECKSUM_ROOT_ALIGN_BYTES 1024u

size_t checksum_segment_leaves(const struct codec_geometry *g, uint32_t segment);
size_t checksum_block_leaves(const struct codec_geometry *g);

/* Bytes of the root's input: the leaves of a block and the zeros behind them. */
size_t checksum_root_bytes(const struct codec_geometry *g);

/* No leaves yet, room for a block's.  0 or -ENOMEM. */
int checksum_start(struct codec_workspace *ws, const struct codec_geometry *g);
/* The next segment, from its canonical bytes.  Segments come in order, each once. */
void checksum_segment(struct codec_workspace *ws, const struct codec_geometry *g, uint32_t segment,
		      const uint8_t *raw);
uint64_t checksum_end(struct codec_workspace *ws, const struct codec_geometry *g);

/* The same from leaves made elsewhere: root_bytes of them, with the zeros. */
uint64_t checksum_root(const uint64_t *leaves, size_t root_bytes);

#endif
