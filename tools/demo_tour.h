/* SPDX-License-Identifier: Apache-2.0 */
/*
 * demo_tour.h - what `make demo` runs: the whole way of a KV cache through a private skvcd, by separate
 * processes, with every claim checked.
 */
#ifndef SKVCD_TOOLS_DEMO_TOUR_H
#define SKVCD_TOOLS_DEMO_TOUR_H

#include <stddef.h>

struct demo_args;

/*
 * @args: model and prompt_file NULL for what ships with the project; prompt, tokens and threads count.
 * Return: 0 when every block came back byte-exact and all processes made the same tokens; -EBADMSG
 * when not; another negative errno with one line in @err.
 */
int demo_tour(const struct demo_args *args, char *err, size_t err_bytes);

#endif
