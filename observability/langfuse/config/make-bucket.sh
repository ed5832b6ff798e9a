# Run in the store's container at its start: makes the bucket, and lets raw events go after 30 days.
# 저장소 컨테이너가 시작할 때 실행: 버킷을 만들고, 원본 이벤트를 30일 뒤에 지우게 합니다.
tell() {
  echo "$1" | timeout 10 weed shell -master=127.0.0.1:9333 2>/dev/null
}

tries=0
until tell "s3.bucket.list" | grep -q langfuse; do
  tries=$((tries + 1))
  if [ "$tries" -gt 30 ]; then
    echo "the bucket langfuse could not be made in $tries tries" >&2
    exit 1
  fi
  sleep 2
  tell "s3.bucket.create -name langfuse" >/dev/null
done
# What Langfuse has written to ClickHouse is not read from here again. ClickHouse에 쓴 뒤에는 다시 읽지 않습니다.
tell "fs.configure -locationPrefix=/buckets/langfuse/events/ -ttl=30d -volumeGrowthCount=1 -apply" >/dev/null
exit 0
