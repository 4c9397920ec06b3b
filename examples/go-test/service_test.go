// Tests of a program that uses the Conversation Service, with a service of their own.
package gotest

//go:generate buf generate

import (
	"bufio"
	"context"
	"encoding/json"
	"log"
	"os"
	"os/exec"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	pb "gotest/gen/conversations/v1"
)

// address is that of the service. It has an empty database, and lasts as long as the tests.
var address string

func TestMain(m *testing.M) {
	os.Exit(withService(m.Run))
}

// withService starts the service, runs the tests, and stops it. A service whose parent is killed ends too.
func withService(run func() int) int {
	service := exec.Command("conversation-service", "serve", "--ephemeral")
	output, err := service.StdoutPipe()
	if err != nil {
		log.Fatal(err)
	}
	service.Stderr = os.Stderr
	if err := service.Start(); err != nil {
		log.Fatal(err)
	}
	defer func() {
		service.Process.Signal(syscall.SIGTERM)
		service.Wait()
	}()
	line, err := bufio.NewReader(output).ReadBytes('\n') // it serves when it has written this line
	if err != nil {
		log.Printf("the service did not start: %v", err)
		return 1
	}
	var told struct{ Address string }
	if err := json.Unmarshal(line, &told); err != nil {
		log.Printf("not JSON: %s", line)
		return 1
	}
	address = told.Address
	return run()
}

func TestCreateConversation(t *testing.T) {
	connection, err := grpc.NewClient(address, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer connection.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := pb.NewConversationsServiceClient(connection)
	sent := &pb.Conversation{Metadata: map[string]string{"topic": "tests"}}
	made, err := client.CreateConversation(ctx, &pb.CreateConversationRequest{Conversation: sent})
	if err != nil {
		t.Fatal(err)
	}
	if made.GetMetadata()["topic"] != "tests" {
		t.Errorf("metadata: %v", made.GetMetadata())
	}
}
