// The official SDK for Go against the HTTP edge: `interop <base URL>`. It says `ok` after every step.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"time"

	"github.com/openai/openai-go/v3"
	"github.com/openai/openai-go/v3/conversations"
	"github.com/openai/openai-go/v3/option"
	"github.com/openai/openai-go/v3/responses"
	"github.com/openai/openai-go/v3/shared"
)

func check(holds bool, what string, values ...any) {
	if !holds {
		fmt.Println(append([]any{"failed:", what}, values...)...)
		os.Exit(1)
	}
}

func must[T any](value T, err error) T {
	check(err == nil, "error", err)
	return value
}

func message(text string) responses.ResponseInputItemUnionParam {
	return responses.ResponseInputItemParamOfMessage(text, responses.EasyInputMessageRoleUser)
}

func main() {
	ctx := context.Background()
	client := openai.NewClient(option.WithBaseURL(os.Args[1]), option.WithAPIKey("unused"))
	api := client.Conversations

	made := must(api.New(ctx, conversations.ConversationNewParams{
		Metadata: shared.Metadata{"a": "b"},
		Items:    []responses.ResponseInputItemUnionParam{message("hello")},
	}))
	check(string(made.Object) == "conversation", "object", made.Object)
	check(must(api.Get(ctx, made.ID)).ID == made.ID, "get")
	must(api.Update(ctx, made.ID, conversations.ConversationUpdateParams{Metadata: shared.Metadata{"c": "d"}}))
	check(must(api.Delete(ctx, made.ID)).Deleted, "delete")
	fmt.Println("create ok")

	made = must(api.New(ctx, conversations.ConversationNewParams{}))
	for start := 0; start < 45; start += 15 {
		items := []responses.ResponseInputItemUnionParam{}
		for number := range 15 {
			items = append(items, message(strconv.Itoa(start+number)))
		}
		must(api.Items.New(ctx, made.ID, conversations.ItemNewParams{Items: items}))
	}
	for _, order := range []conversations.ItemListParamsOrder{"asc", "desc"} {
		pages := api.Items.ListAutoPaging(ctx, made.ID, conversations.ItemListParams{Limit: openai.Int(7), Order: order})
		count := 0
		for pages.Next() {
			expected := count
			if order == "desc" {
				expected = 44 - count
			}
			text := pages.Current().AsMessage().Content[0].Text
			check(text == strconv.Itoa(expected), "order", text, expected)
			count++
		}
		check(pages.Err() == nil && count == 45, "pages", pages.Err(), count)
	}
	fmt.Println("pages ok")

	page := must(api.Items.List(ctx, made.ID, conversations.ItemListParams{Limit: openai.Int(1)}))
	id := page.Data[0].ID
	check(must(api.Items.Get(ctx, made.ID, id, conversations.ItemGetParams{})).ID == id, "item")
	check(must(api.Items.Delete(ctx, made.ID, id)).ID == made.ID, "delete item")
	fmt.Println("items ok")

	var failure *openai.Error
	_, err := api.Items.List(ctx, made.ID, conversations.ItemListParams{Limit: openai.Int(1000)})
	check(errors.As(err, &failure), "no API error", err)
	check(failure.StatusCode == 400 && failure.Code == "integer_above_max_value", "code", failure.Code)
	check(failure.Param == "limit", "param", failure.Param)
	_, err = api.Items.Get(ctx, made.ID, id, conversations.ItemGetParams{})
	check(errors.As(err, &failure) && failure.StatusCode == 404, "not found", err)
	fmt.Println("errors ok")

	key := option.WithHeader("Idempotency-Key", fmt.Sprint("key-of-", time.Now().UnixNano()))
	first := must(api.New(ctx, conversations.ConversationNewParams{}, key))
	check(must(api.New(ctx, conversations.ConversationNewParams{}, key)).ID == first.ID, "repeated")
	fmt.Println("keys ok")
}
