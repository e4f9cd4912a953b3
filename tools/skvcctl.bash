# SPDX-License-Identifier: Apache-2.0
# bash completion of skvcctl, skvcd and skvc-bench

_skvcctl() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}
	local before=${COMP_WORDS[COMP_CWORD - 2]:-}

	case $prev in
	-b | --bus | -c | --config)
		COMPREPLY=($(compgen -f -- "$cur"))
		return
		;;
	model)
		COMPREPLY=($(compgen -W "add remove" -- "$cur"))
		return
		;;
	evict)
		COMPREPLY=($(compgen -W "tenant namespace all" -- "$cur"))
		return
		;;
	drain)
		COMPREPLY=($(compgen -W "wait off" -- "$cur"))
		return
		;;
	explain)
		COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" stats --json 2>/dev/null |
			sed -n 's/^\t\t"\([^"]*\)":.*/\1/p')" -- "$cur"))
		return
		;;
	quota | tenant)
		COMPREPLY=($(compgen -W "$("${COMP_WORDS[0]}" tenants 2>/dev/null |
			sed -n 's/^  \([^ ]*\) .*/\1/p')" -- "$cur"))
		return
		;;
	esac
	if [[ $before == quota ]]; then
		COMPREPLY=($(compgen -W "none" -- "$cur"))
	elif [[ ${COMP_WORDS[COMP_CWORD - 3]:-} == model ]]; then
		COMPREPLY=($(compgen -d -- "$cur"))
	elif [[ $cur == -* ]]; then
		COMPREPLY=($(compgen -W "-b --bus -c --config --system -j --json --prometheus --plan -w --watch -h --help -V
			--version" -- "$cur"))
	else
		COMPREPLY=($(compgen -W "stats top namespaces profiles models sessions tenants ping version doctor explain plan quota evict
			drain reload model" -- "$cur"))
	fi
}

_skvcd() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}

	case $prev in
	-c | --config)
		COMPREPLY=($(compgen -f -- "$cur"))
		return
		;;
	-o)
		# The daemon knows its keys best.
		COMPREPLY=($(compgen -S = -W "$("${COMP_WORDS[0]}" --help-config 2>/dev/null |
			sed -n -e 's/^\[\(.*\)\]$/s \1/p' -e 's/^#\([a-z_]*\) =.*/k \1/p' |
			while read -r what name; do
				if [[ $what == s ]]; then section=$name; else echo "$section.$name"; fi
			done)" -- "$cur"))
		compopt -o nospace
		return
		;;
	esac
	COMPREPLY=($(compgen -W "-c --config -o --check-config --help-config --help-metrics -d --debug -h --help -V --version" -- "$cur"))
}

_skvc_bench() {
	local cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD - 1]}

	if ((COMP_CWORD == 1)); then
		COMPREPLY=($(compgen -W "calibrate codec frontier ipc model neighbour replay tier --help --version" -- "$cur"))
		return
	fi
	if [[ ${COMP_WORDS[1]} == replay ]]; then
		case $prev in
		--policy)
			COMPREPLY=($(compgen -W "lru s3fifo arc default optimum" -- "$cur"))
			return
			;;
		--model-size)
			COMPREPLY=($(compgen -W "llama-3.1-8b llama-3.1-70b qwen3-8b qwen3-32b" -- "$cur"))
			return
			;;
		esac
		if [[ $cur == -* ]]; then
			COMPREPLY=($(compgen -W "--trace --policy --capacity --nvme-capacity --model-size --block-tokens
				--block-bytes --svg --json --help" -- "$cur"))
			return
		fi
	fi
	COMPREPLY=($(compgen -f -- "$cur"))
}

complete -F _skvcctl skvcctl
complete -F _skvcd skvcd
complete -F _skvc_bench skvc-bench
