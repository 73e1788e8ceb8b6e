// A peer of the bench: Kafka -> River -> HTTP, as River's documentation advises for speed. A bridge inserts batches of up
// to 500 with the COPY protocol and commits the offsets afterwards; workers post the bytes as they came.
//
//	river migrate | river run
//
// Environment: BROKERS, TOPIC, GROUP, DSN, URL, WORKERS.
package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgxpool"
	"github.com/riverqueue/river"
	"github.com/riverqueue/river/riverdriver/riverpgxv5"
	"github.com/riverqueue/river/rivermigrate"
	"github.com/twmb/franz-go/pkg/kgo"
)

// Transaction is a job: the record's value, which here is always JSON text.
type Transaction struct {
	Value string `json:"value"`
}

// Kind names the job's type.
func (Transaction) Kind() string { return "transaction" }

type deliver struct {
	river.WorkerDefaults[Transaction]
	http *http.Client
	url  string
}

func (d *deliver) Work(ctx context.Context, job *river.Job[Transaction]) error {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, d.url, bytes.NewReader([]byte(job.Args.Value)))
	if err != nil {
		return err
	}
	request.Header.Set("Content-Type", "application/json")
	request.Header.Set("Idempotency-Key", idOf(job.Args.Value))
	answer, err := d.http.Do(request)
	if err != nil {
		return err
	}
	defer answer.Body.Close()
	if _, err := io.Copy(io.Discard, answer.Body); err != nil {
		return err
	}
	if answer.StatusCode/100 != 2 {
		return fmt.Errorf("status %d", answer.StatusCode)
	}
	return nil
}

// The service of this bench knows transactions by the header; the id is the first string of the value.
func idOf(value string) string {
	begin := bytes.IndexByte([]byte(value), ':') + 2
	end := begin + bytes.IndexByte([]byte(value[begin:]), '"')
	return value[begin:end]
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	pool, err := pgxpool.New(ctx, os.Getenv("DSN"))
	check(err)
	if os.Args[1] == "migrate" {
		migrator, err := rivermigrate.New(riverpgxv5.New(pool), nil)
		check(err)
		_, err = migrator.Migrate(ctx, rivermigrate.DirectionUp, nil)
		check(err)
		return
	}
	workers, err := strconv.Atoi(os.Getenv("WORKERS"))
	check(err)
	transport := http.DefaultTransport.(*http.Transport).Clone()
	transport.Proxy, transport.MaxIdleConns, transport.MaxIdleConnsPerHost = nil, workers, workers
	bundle := river.NewWorkers()
	river.AddWorker(bundle, &deliver{http: &http.Client{Transport: transport, Timeout: 15 * time.Second}, url: os.Getenv("URL")})
	client, err := river.NewClient(riverpgxv5.New(pool), &river.Config{
		Queues:  map[string]river.QueueConfig{river.QueueDefault: {MaxWorkers: workers}},
		Workers: bundle,
		// As River's own benchmark command sets it; the default of 100 ms bounds it to 640 jobs a second.
		FetchCooldown:     2 * time.Millisecond,
		FetchPollInterval: 200 * time.Millisecond,
	})
	check(err)
	check(client.Start(ctx))
	bridge(ctx, client)
	last, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	check(client.Stop(last))
}

func bridge(ctx context.Context, client *river.Client[pgx.Tx]) {
	kafka, err := kgo.NewClient(kgo.SeedBrokers(os.Getenv("BROKERS")), kgo.ConsumerGroup(os.Getenv("GROUP")),
		kgo.ConsumeTopics(os.Getenv("TOPIC")), kgo.ConsumeResetOffset(kgo.NewOffset().AtStart()),
		kgo.DisableAutoCommit(), kgo.BlockRebalanceOnPoll())
	check(err)
	defer kafka.Close()
	for {
		fetched := kafka.PollRecords(ctx, 500)
		if ctx.Err() != nil {
			return
		}
		fetched.EachError(func(topic string, partition int32, err error) { log.Printf("%s/%d: %v", topic, partition, err) })
		var jobs []river.InsertManyParams
		fetched.EachRecord(func(record *kgo.Record) {
			jobs = append(jobs, river.InsertManyParams{Args: Transaction{Value: string(record.Value)}})
		})
		if len(jobs) > 0 {
			for {
				if _, err := client.InsertManyFast(ctx, jobs); err == nil {
					break
				} else if ctx.Err() != nil {
					return
				} else {
					log.Printf("insert: %v", err)
					time.Sleep(time.Second)
				}
			}
			if err := kafka.CommitUncommittedOffsets(ctx); err != nil {
				log.Printf("commit: %v", err)
			}
		}
		kafka.AllowRebalance()
	}
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
