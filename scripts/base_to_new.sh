#!/usr/bin/env bash
# Train on the first half of the classes and test on both halves, three seeds, in the folders of CoOp's scripts. A KD head
# never saw the new classes: the CE pathway alone answers for them, and the log says so. What is finished is not run again.
#
#   bash scripts/base_to_new.sh DATA TRAINER DATASET [SHOTS] [CFG] [KEY VALUE ...]
#   bash scripts/base_to_new.sh ~/data CoOpDHO imagenet 16 vit_b16_ep50_ctxv1
#   bash scripts/base_to_new.sh "" CoOpDHO shapes                              # the built-in demo
set -euo pipefail
DATA=$1 TRAINER=$2 DATASET=$3 SHOTS=${4:-16} CFG=${5:-}
shift $(($# < 5 ? $# : 5))
HERE=$(cd "$(dirname "$0")/.." && pwd)
COMMON=${DATASET}/shots_${SHOTS}/${TRAINER}/${CFG:-default}
BASE=${OUTPUT:-output}/base2new/train_base/${COMMON}
NEW=${OUTPUT:-output}/base2new/test_new/${COMMON}

for SEED in ${SEEDS:-1 2 3}; do
    for HALF in base new; do
        DIR=${BASE}/seed${SEED} WHAT=()
        if [ "${HALF}" = new ]; then
            DIR=${NEW}/seed${SEED} WHAT=(--eval-only --model-dir "${BASE}/seed${SEED}")
        fi
        if [ -f "${DIR}/finished" ]; then
            if [ "$(cat "${DIR}/finished")" != "$*" ]; then
                echo "error: ${DIR} was run with other options: $(cat "${DIR}/finished")" >&2
                exit 2
            fi
            echo "Results are in ${DIR}: not run again"
            continue
        fi
        python "${HERE}/train.py" --root "${DATA}" --trainer "${TRAINER}" --dataset "${DATASET}" --shots "${SHOTS}" \
            ${CFG:+--config-file "${HERE}/configs/trainers/${TRAINER}/${CFG}.yaml"} \
            --seed "${SEED}" --output-dir "${DIR}" ${WHAT[@]+"${WHAT[@]}"} DATASET.SUBSAMPLE_CLASSES "${HALF}" "$@"
        echo "$*" > "${DIR}/finished"
    done
done
python "${HERE}/scripts/average.py" "${BASE}" "${NEW}"
