/* SPDX-License-Identifier: Apache-2.0 */
/*
 * bench_cost.h - what a guess costs beside what it saves: the multiply-adds of a target model's prefill.
 */
#ifndef SKVCD_TOOLS_BENCH_COST_H
#define SKVCD_TOOLS_BENCH_COST_H

#include <stdint.h>

/*
 * Multiply-adds a token of the model in this folder (config.json): attention's and the MLP's matrices.  Neither
 * the embeddings nor attention over the context, which would make the target dearer.  0, or -errno with a line
 * on stderr.
 */
int bench_cost_target(const char *folder, double *ret_macs);

/* Share of one bf16 prefill, when int8 runs at twice the rate of bf16. */
double bench_cost_share(uint64_t int8_products, double target_macs);

#endif
