/* SPDX-License-Identifier: Apache-2.0 */
/*
 * skvcctl_change.h - the commands that change a daemon.
 */
#ifndef SKVCD_TOOLS_SKVCCTL_CHANGE_H
#define SKVCD_TOOLS_SKVCCTL_CHANGE_H

#include "tools/skvcctl.h"

/* words[0] is the command.  Its exit status, or -1: it is none of these. */
int skvcctl_change(const struct skvcctl_source *source, int count, char **words);

#endif
